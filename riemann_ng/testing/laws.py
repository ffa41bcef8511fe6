"""The laws of inner products, to be run on any kind: the library's own and yours.

    from riemann_ng.testing import check_laws
    check_laws(lambda draw: (MyForm(...), its_matrix))      # its_matrix computed without MyForm

Each law is a function of a `Case`, a form with its dense matrix, and raises `LawBroken` (an AssertionError) that says
which law, which kind, and by how much. A law that does not apply to a form returns the reason why not, a string.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..inner_products import InnerProduct
from .cases import LAWS as LAWS
from .cases import Case as Case
from .cases import Factory, make_case
from .cases import LawBroken as LawBroken
from .draws import Draw
from .laws_of_constructions import (
    blend as blend,
)
from .laws_of_constructions import (
    diagonal as diagonal,
)
from .laws_of_constructions import (
    dual as dual,
)
from .laws_of_constructions import (
    frame as frame,
)
from .laws_of_constructions import (
    logdet as logdet,
)
from .laws_of_constructions import (
    naturality as naturality,
)
from .laws_of_constructions import (
    pencil as pencil,
)
from .laws_of_constructions import (
    products as products,
)
from .laws_of_constructions import (
    pullback as pullback,
)
from .laws_of_constructions import (
    quotient as quotient,
)
from .laws_of_constructions import (
    restriction as restriction,
)
from .laws_of_constructions import (
    sums_and_multiples as sums_and_multiples,
)
from .laws_of_elements import (
    batches as batches,
)
from .laws_of_elements import (
    differentiation as differentiation,
)
from .laws_of_elements import (
    dtype_and_device as dtype_and_device,
)
from .laws_of_elements import (
    linearity as linearity,
)
from .laws_of_elements import (
    pairing as pairing,
)
from .laws_of_elements import (
    positivity as positivity,
)
from .laws_of_elements import (
    round_trip_of_covectors as round_trip_of_covectors,
)
from .laws_of_elements import (
    round_trip_of_vectors as round_trip_of_vectors,
)
from .laws_of_elements import (
    solving as solving,
)
from .laws_of_elements import (
    symmetry as symmetry,
)
from .laws_of_records import (
    inferred_symmetry as inferred_symmetry,
)
from .laws_of_records import (
    random_vectors as random_vectors,
)
from .laws_of_records import (
    representation as representation,
)
from .laws_of_records import (
    state as state,
)


def check_laws(
    make: Factory,
    oracle: Callable[[InnerProduct], Tensor] | None = None,
    laws: Iterable[str] | None = None,
    cases: int = 3,
    dtypes: Iterable[torch.dtype] = (torch.float64, torch.float32),
    device: str = "cpu",
    name: str = "",
) -> dict[str, str]:
    """Runs the laws on what `make(draw)` makes, a form and its matrix, in every dtype; which did not apply, and why.

    `make` should take all its randomness from the draw. A form without a matrix is compared with `oracle(form)`, and
    without that with its own `inner` on the basis vectors, which finds less. All laws are run before any is reported.
    """
    chosen = list(LAWS) if laws is None else sorted(laws, key=list(LAWS).index)
    skipped: dict[str, str] = {}
    broken: list[str] = []
    for dtype in dtypes:
        for seed in range(cases):
            for entry in chosen:  # each law draws anew, so what it sees does not depend on the others
                case = make_case(make, Draw.seeded(seed, dtype, device), oracle, name)
                try:
                    reason = LAWS[entry](case)
                except LawBroken as error:
                    broken.append(f"{error} ({dtype}, seed {seed})")
                else:
                    skipped |= {} if reason is None else {entry: reason}
    if broken:
        raise LawBroken("\n".join(broken))
    return skipped
