"""The laws of what a form says of itself: its state, its text, its symmetry, its random vectors."""

from __future__ import annotations

import io

import torch

from ..elements import Vector
from ..errors import NotClosed
from ..inner_products import InnerProduct
from ..symmetry import Symmetry
from .cases import Case, law


@law
def state(case: Case) -> str | None:
    """The state goes through a file of tensors, numbers and strings, and comes back as the same form."""
    g, v = case.form, case.vector()
    try:
        state = g.state()
    except NotClosed:
        return "its kind keeps no state"
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    back = InnerProduct.from_state(g.space, torch.load(file, weights_only=True))
    case.require(back.space == g.space, f"the restored form lives on {back.space}")
    case.agree(back.flat(v).data, g.flat(v).data, "flat after the round trip of the state")
    same = back.symmetry <= g.symmetry and g.symmetry <= back.symmetry
    case.require(same, f"the restored symmetry is {back.symmetry}, it was {g.symmetry}")
    return None


@law
def representation(case: Case) -> None:
    """The repr is one line with the expression, its space and the dual."""
    text = repr(case.form)
    case.require(isinstance(text, str) and "\n" not in text, f"its repr is {text!r}")
    for part in (case.form.expression(), str(case.form.space), str(case.form.space.dual)):
        case.require(part in text, f"its repr {text!r} does not show {part!r}")


@law
def inferred_symmetry(case: Case) -> None:
    """The symmetry is a value of the calculus, that of the dual keeps the same, and naming nothing keeps more."""
    claim = case.form.symmetry
    case.require(isinstance(claim, Symmetry), f"its symmetry is {claim!r}")
    mirrored = case.form.dual.symmetry
    case.require(claim <= mirrored and mirrored <= claim, f"it keeps {claim}, its dual {mirrored}")


@law
def random_vectors(case: Case) -> None:
    """random_vector is Gaussian with this precision: its covariance is the inverse, within four standard errors."""
    n, d = 2000, case.dim
    x = case.form.random_vector(case.draw.generator, n, like=case.matrix)
    case.require(isinstance(x, Vector) and x.space == case.form.space and x.batch == (n,), f"random_vector gives {x}")
    z = x.components @ torch.linalg.cholesky(case.matrix)
    off, error = float((z.mT @ z / n - torch.eye(d).to(z)).norm()), (d * (d + 1) / n) ** 0.5
    case.require(
        off < error + 4 * (2 / n) ** 0.5, f"random vectors, whitened: covariance off by {off:.2f}, expected {error:.2f}"
    )
    case.require(float(z.mean(0).norm()) < (d / n) ** 0.5 + 4 * n**-0.5, "random vectors have a mean")
