"""Steepest descent without an inner product: norms with their duality maps, and how they compose."""

from .base import InvalidNorm as InvalidNorm
from .base import Norm as Norm
from .base import Scaled as Scaled
from .by_layer import ByLayer as ByLayer
from .composed import Max as Max
from .composed import PerSlice as PerSlice
from .coordinates import Sign as Sign
from .from_inner_product import FromInnerProduct as FromInnerProduct
from .from_inner_product import root_mean_square as root_mean_square
from .matrix_sign import SVD as SVD
from .matrix_sign import MatrixSign as MatrixSign
from .matrix_sign import NewtonSchulz as NewtonSchulz
from .modular import Bond as Bond
from .modular import Conv as Conv
from .modular import Embed as Embed
from .modular import Linear as Linear
from .modular import ModularNorm as ModularNorm
from .modular import concatenate as concatenate
from .of_module import Modular as Modular
from .spectral import Spectral as Spectral
from .steepest import norm_at as norm_at
from .steepest import steepest_ascent as steepest_ascent
