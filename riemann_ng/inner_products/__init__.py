"""WHAT a sharp is a sharp of: the algebra of inner products."""

from .algebra import Expressions as Expressions
from .base import InnerProduct as InnerProduct
from .base import kind as kind
from .damping import damp_factors as damp_factors
from .damping import euclidean_on_translations as euclidean_on_translations
from .diagonal import Diagonal as Diagonal
from .diagonal import Euclidean as Euclidean
from .direct_sum import BlockDiagonal as BlockDiagonal
from .direct_sum import direct_sum as direct_sum
from .functors import Dual as Dual
from .functors import Pullback as Pullback
from .functors import Quotient as Quotient
from .gram import Gram as Gram
from .gram import LowRank as LowRank
from .kronecker import Kronecker as Kronecker
from .moment import SecondMoment as SecondMoment
from .moment import second_moment as second_moment
from .rotated import RotatedDiagonal as RotatedDiagonal
from .sums import Scaled as Scaled
from .sums import Sum as Sum
from .symmetries import explain_symmetry as explain_symmetry
