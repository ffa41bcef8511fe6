"""Tests to run on your own inner products, metrics and optimizers.

`check_invariance` gives the table of what a method is invariant to, `assert_invariant` and `InvarianceSuite` are for
your tests; `check_laws` holds an inner product against its laws.
`riemann_ng.testing.strategies` has the Hypothesis strategies; all else here works without Hypothesis.
"""

from .cases import LAWS as LAWS
from .cases import Case as Case
from .cases import LawBroken as LawBroken
from .cases import law as law
from .draws import Draw as Draw
from .invariance import InvarianceReport as InvarianceReport
from .invariance import InvarianceSuite as InvarianceSuite
from .invariance import assert_invariant as assert_invariant
from .invariance import check_invariance as check_invariance
from .invariance import direction as direction
from .invariance import discrepancy as discrepancy
from .invariance import metric as metric
from .invariance import norm as norm
from .invariance import optimizer as optimizer
from .invariance import update as update
from .kinds import KINDS as KINDS
from .laws import check_laws as check_laws
