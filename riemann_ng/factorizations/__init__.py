"""Positive matrices made ready to be inverted: numbers only, no spaces.

A factorization F of a symmetric positive matrix M offers `solve` (M⁻¹x), a frame E with E Eᵀ = M⁻¹, and `logdet`.
What is made of one matrix is in `leaves.py`, what is made of other factorizations in `composed.py`; `making.py`
decides, from the numbers, which of them a matrix gets and whether it is definite at all. `keeping.py` says how long
what was computed from tensors holds.
"""

from .base import Factorization as Factorization
from .base import Indefinite as Indefinite
from .base import NotFinite as NotFinite
from .base import RankDeficient as RankDeficient
from .base import TooNarrow as TooNarrow
from .base import rounding_unit as rounding_unit
from .centred import CentredFactor as CentredFactor
from .centred import factorize_centred as factorize_centred
from .composed import BlockFactor as BlockFactor
from .composed import InverseFactor as InverseFactor
from .composed import KroneckerFactor as KroneckerFactor
from .composed import ScaledFactor as ScaledFactor
from .composed import WoodburyFactor as WoodburyFactor
from .dual import LOST as LOST
from .dual import DualFactor as DualFactor
from .dual import least_by_dual as least_by_dual
from .keeping import Kept as Kept
from .keeping import keep as keep
from .keeping import normally as normally
from .leaves import CholeskyFactor as CholeskyFactor
from .leaves import DiagonalFactor as DiagonalFactor
from .leaves import FrameFactor as FrameFactor
from .leaves import IdentityFactor as IdentityFactor
from .leaves import MatrixFactor as MatrixFactor
from .making import factorize_dense as factorize_dense
from .making import factorize_rows as factorize_rows
from .making import fold_rows as fold_rows
from .making import pencil as pencil
from .making import rows_pencil as rows_pencil
from .making import tolerance_of as tolerance_of
