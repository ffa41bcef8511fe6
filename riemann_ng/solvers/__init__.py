"""HOW a sharp is computed. WHAT it is a sharp of is the business of `riemann_ng.inner_products`."""

from .auto import Auto as Auto
from .auto import explain as explain
from .base import Prepared as Prepared
from .base import Solution as Solution
from .base import Solver as Solver
from .base import SolveReport as SolveReport
from .base import Structure as Structure
from .cg import CG as CG
from .direct import Cholesky as Cholesky
from .direct import Dual as Dual
from .direct import Eigen as Eigen
from .iterative import Iterative as Iterative
from .minres_qlp import MinresQLP as MinresQLP
from .riccati import Riccati as Riccati
from .stages import Curvature as Curvature
from .stages import Stage as Stage
from .stages import Stages as Stages
