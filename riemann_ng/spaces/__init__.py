"""Vector spaces and affine spaces as values with a name. No tensors live here.

Identity is nominal: two spaces are equal when their names and dimensions are, so two layers of width 256 have two
different spaces. `repr` is code (`eval(repr(V)) == V`), `str` is mathematics. One arrow everywhere, codomain first:
`Hom(V, W)` is `W * V.dual` and prints `W ← V`.

Laws: `V.dual.dual == V`; `(V * W).dual == V.dual * W.dual`; `(V + W).dual` is the sum of the duals; products are
associative; dimensions multiply along `*` and add along `+`. A `Family` is a bundle over a finite set: products with
it are taken member by member.
"""

from .affine import AffineSpace as AffineSpace
from .affine import Hull as Hull
from .affine import OnePoint as OnePoint
from .affine import Translations as Translations
from .vector import Derived as Derived
from .vector import DirectSum as DirectSum
from .vector import Dual as Dual
from .vector import Family as Family
from .vector import Hom as Hom
from .vector import Product as Product
from .vector import Space as Space
from .vector import VectorSpace as VectorSpace
from .vector import check_vector_space as check_vector_space
from .vector import tensor_product as tensor_product
