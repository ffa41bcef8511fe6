"""What the constants of an expression name: the symmetries of its leaves."""

from __future__ import annotations

from ..spaces import DirectSum, Dual, Family, Hull, Product, VectorSpace
from ..symmetry import Structure, Symmetry


def of_euclidean(space: VectorSpace, source: str) -> Symmetry:
    """The identity matrix names an orthonormal basis; on a hull an origin too, for it is h on V plus the origin's square."""
    if isinstance(space, DirectSum):
        return Symmetry.direct_sum([of_euclidean(V, source) for _, V in space.parts])
    if isinstance(space, Family):
        return of_euclidean(space.of, source)
    if isinstance(space, Product):
        symmetry = Symmetry.natural()
        for V in space.of:
            symmetry = symmetry * of_euclidean(V, source)
        return symmetry
    return _of_atom(space, "coordinates", source)


def of_matrix(space: VectorSpace, name: str, source: str) -> Symmetry:
    """A matrix from outside has no provenance: it is a constant known by its own name."""
    if len(space.factors) == 1 and not isinstance(space, (DirectSum, Family)):
        return _of_atom(space, name, source)
    return Symmetry.naming(*(Structure(base, "frame", name, source) for base in space.bases), weight=_weights(space))


def with_lines(symmetry: Symmetry, space: VectorSpace, source: str) -> Symmetry:
    """Keeping the diagonal alone names the lines of the basis, and on a hull the origin."""
    hulls = {V for V in _atoms(space) if isinstance(_plain(V), Hull)}
    names = [Structure(base, "lines", source=source) for base in space.bases]
    names += [Structure(base, "origin", source=source) for V in hulls for base in V.bases]
    return symmetry.with_structure(*names)


def with_frame(symmetry: Symmetry, space: VectorSpace, name: str, source: str) -> Symmetry:
    """A constant map or frame names all of the coordinates."""
    return symmetry.with_structure(*(Structure(base, "frame", name, source) for base in space.bases))


def _of_atom(space: VectorSpace, name: str, source: str) -> Symmetry:
    sign = -1 if isinstance(space, Dual) else 1
    if not space.bases:
        return Symmetry.natural()
    base = space.bases[0]
    form = Symmetry.naming(Structure(base, "form", name, source), weight={base: 2 * sign})
    if not isinstance(_plain(space), Hull):
        return form
    return form + Symmetry.naming(Structure(base, "origin", name, source))


def _plain(space: VectorSpace) -> VectorSpace:
    return space.of if isinstance(space, Dual) else space


def _atoms(space: VectorSpace) -> list[VectorSpace]:
    if isinstance(space, DirectSum):
        return [atom for _, V in space.parts for atom in _atoms(V)]
    if isinstance(space, Family):
        return _atoms(space.of)
    if isinstance(space, Product):
        return [atom for V in space.of for atom in _atoms(V)]
    return [space]


def _weights(space: VectorSpace) -> dict[str, int]:
    weights: dict[str, int] = {}
    for atom in _atoms(space):
        for base in atom.bases:
            weights[base] = weights.get(base, 0) + (-2 if isinstance(atom, Dual) else 2)
    return weights
