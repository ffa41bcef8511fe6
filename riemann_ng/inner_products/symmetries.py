"""What the constants of an expression name: the symmetries of its leaves."""

from __future__ import annotations

from typing import Protocol

from ..linear_maps import LinearMap
from ..spaces import Derived, DirectSum, Dual, Family, Hull, Product, VectorSpace
from ..symmetry import COORDINATES, Structure, Symmetry, explain


class Expression(Protocol):
    @property
    def symmetry(self) -> Symmetry: ...


def explain_symmetry(g: Expression) -> str:
    """One line per loss, with the term that is to blame: `translations of A are lost at: Euclidean(Â*)`."""
    return explain(g.symmetry)


def of_euclidean(space: VectorSpace, source: str) -> Symmetry:
    """The identity matrix names an orthonormal basis; on a hull an origin too: it is h on V plus a square."""
    if isinstance(space, DirectSum):
        return Symmetry.direct_sum([of_euclidean(V, source) for _, V in space.parts])
    if isinstance(space, Family):
        return of_euclidean(space.of, source)
    if isinstance(space, Product):
        symmetry = Symmetry.natural()
        for V in space.of:
            symmetry = symmetry * of_euclidean(V, source)
        return symmetry
    plain = _plain(space)
    if isinstance(plain, Derived) and plain.up_to_rotation:
        return Symmetry.natural()
    return _of_atom(space, COORDINATES, source)


def of_matrix(space: VectorSpace, name: str, source: str) -> Symmetry:
    """A matrix from outside has no provenance: it is a constant known by its own name."""
    name = f"{name}, a matrix" if name == COORDINATES else name  # whatever it is called, it is not the coordinates
    if len(space.factors) == 1 and not isinstance(space, (DirectSum, Family)):
        return _of_atom(space, name, source)
    return Symmetry.naming(*_frames(space, name, source), weight=_weights(space))


def with_lines(symmetry: Symmetry, space: VectorSpace, source: str) -> Symmetry:
    """Keeping the diagonal alone names the lines of the basis, and on a hull the origin."""
    if any(isinstance(_plain(V), Derived) for V in _atoms(space)):
        return with_frame(symmetry, space, source, source)
    lines = (Structure(base, "lines", source=source) for base in space.bases)
    return symmetry.with_structure(*lines, *(Structure(base, "origin", source=source) for base in _pointed(space)))


def with_frame(symmetry: Symmetry, space: VectorSpace, name: str, source: str) -> Symmetry:
    """A constant map or frame names all of the coordinates."""
    return symmetry.with_structure(*_frames(space, name, source))


def along(symmetry: Symmetry, phi: LinearMap, source: str, up_to_scale: bool = False) -> Symmetry:
    """Of a form and a map, which takes part twice; a kernel takes part by its image alone, whatever its scale."""
    if phi.symmetry is None:
        for space in (phi.domain, phi.codomain):
            symmetry = with_frame(symmetry, space, phi.name, source)
        return symmetry
    return symmetry * (phi.symmetry * phi.symmetry ** (-1 if up_to_scale else 1))


def _frames(space: VectorSpace, name: str, source: str) -> list[Structure]:
    """What a constant without structure names: the frames, and on hulls the origins, of all bases."""
    frames = [Structure(base, "frame", name, source) for base in space.bases]
    return frames + [Structure(base, "origin", name, source) for base in _pointed(space)]


def _pointed(space: VectorSpace) -> list[str]:
    """The bases whose hull takes part: only there do translations act."""
    atoms = (_plain(V) for V in _atoms(space))
    roots = (root for V in atoms for root in (_atoms(V.of) if isinstance(V, Derived) else [V]))
    return list(dict.fromkeys(base for V in roots if isinstance(_plain(V), (Hull, Derived)) for base in V.bases))


def _of_atom(space: VectorSpace, name: str, source: str) -> Symmetry:
    sign = -1 if isinstance(space, Dual) else 1
    if not space.bases:
        return Symmetry.natural()
    if isinstance(_plain(space), Derived):
        return Symmetry.naming(*_frames(space, name, source))
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
