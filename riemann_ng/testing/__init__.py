"""Tests to run on your own inner products, metrics and optimizers.

`riemann_ng.testing.strategies` has the Hypothesis strategies; all else here works without Hypothesis.
"""

from .cases import LAWS as LAWS
from .cases import Case as Case
from .cases import LawBroken as LawBroken
from .cases import law as law
from .draws import Draw as Draw
from .kinds import KINDS as KINDS
from .laws import check_laws as check_laws
