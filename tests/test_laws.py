"""The laws of inner products: on every kind, and on planted errors, each refused exactly where it shows."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from torch import Tensor

from riemann_ng import Gram, InnerProduct, Space, Vector
from riemann_ng.errors import MissingDependency, NotClosed
from riemann_ng.inner_products import BlockDiagonal, Scaled
from riemann_ng.inner_products.base import KINDS as STORED
from riemann_ng.inner_products.base import kind
from riemann_ng.spaces import DirectSum, Family, Hull, Product, Translations, VectorSpace
from riemann_ng.testing import KINDS, LAWS, Draw, LawBroken, check_laws
from riemann_ng.testing.cases import Case, make_case
from riemann_ng.testing.draws import CONDITION
from riemann_ng.testing.strategies import cases, draws, inner_products, spaces

# --- every kind keeps every law ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_kind(name: str) -> None:
    skipped = check_laws(KINDS[name], name=name, cases=2)
    assert set(skipped) <= {"restriction", "quotient", "blend", "state"}


@given(cases())
def test_any_kind_in_any_shape(case: Case) -> None:
    for law in LAWS.values():
        law(case)


def test_every_kind_that_can_be_stored_is_in_the_registry() -> None:
    """A kind that nobody draws would keep its laws on trust."""

    def parts(g: InnerProduct) -> Iterator[str]:
        yield g.kind
        for part in (*getattr(g, "factors", ()), *getattr(g, "terms", ()), *getattr(g, "parts", {}).values()):
            yield from parts(part)
        if isinstance(g, Scaled):
            yield from parts(g.of)

    met = {k for make in KINDS.values() for seed in range(20) for k in parts(make(Draw.seeded(seed))[0])}
    assert met >= set(STORED) - {"test: weighted", "test: transposed"}


@pytest.mark.parametrize("law, kinds", [("blend", 12), ("state", 20), ("restriction", 3), ("quotient", 25)])
def test_a_law_with_exceptions_still_applies_to_many_kinds(law: str, kinds: int) -> None:
    reasons = [LAWS[law](make_case(make, Draw.seeded(0), name=name)) for name, make in KINDS.items()]
    assert reasons.count(None) >= kinds
    assert all(isinstance(reason, str) for reason in reasons if reason is not None)


# --- planted errors ---------------------------------------------------------------------------------------------------


class Inner(Gram):
    def inner(self, v, w):
        return super().inner(v, w) + v.components[..., 0] * w.components[..., 1]


class Norm(Gram):
    def norm(self, v):
        return self.inner(v, v)


class MatrixOfTheInverse(Gram):
    def matrix(self, like=None):
        return torch.linalg.inv(self.entries)


class FlatGivesVectors(Gram):
    def flat(self, v):
        return Vector(self.space.dual, super().flat(v).data)


class FlatIsSharp(Gram):
    def flat_components(self, x):
        return x @ torch.linalg.inv(self.entries)


class Sharp(Gram):
    """Right on one ray of covectors, the multiples of flat(e₀), wrong elsewhere."""

    def sharp(self, covector, solver=None):
        return super().sharp(covector, solver) * (2.0 if covector.data.ndim == 1 else 1.0)


class Factorization(Gram):
    def direct_factorization(self, method):
        return Gram(self.space, self.entries * (2 if method == "eigen" else 1)).factorization()


class Affine(Gram):
    def flat(self, v):
        return super().flat(v + Vector(v.space, torch.ones_like(v.data)))


class Batches(Gram):
    def norm(self, v):
        return super().norm(v).mean().expand(v.batch)


class TakesAnyDtype(Gram):
    def _same_kind(self, v, call):
        pass

    def flat_components(self, x):
        return x.to(self.entries) @ self.entries


class CutsTheGradient(Gram):
    def flat_components(self, x):
        return x.detach() @ self.entries + 0 * x


class PullbackByTheTranspose(Gram):
    def pullback(self, phi):
        return (
            Gram(phi.domain, (P := phi.matrix()) @ self.entries[: len(P), : len(P)] @ P.mT)
            if len(self.entries) == phi.domain.dim
            else super().pullback(phi)
        )


class PullbackForgetsTheMap(Gram):
    def pullback(self, phi):
        k = phi.domain.dim
        return super().pullback(phi) if k == self.space.dim else Gram(phi.domain, self.entries[:k, :k])


class Restricts(BlockDiagonal):
    def restrict(self, to):
        return 2 * super().restrict(to)


class QuotientWithoutSchur(Gram):
    def quotient(self, kernel):
        q = super().quotient(kernel)
        q.entries = (S := q.projection.matrix()) @ self.entries @ S.mT
        return q


class Frame(Gram):
    """The columns of a Cholesky factor of M, not of its inverse."""

    def frame(self, like=None):
        return self.dual.frame(like)._build(
            Space("frame", self.space.dim), self.space, lambda z: z @ torch.linalg.cholesky(self.entries).mT,
            lambda x: x @ torch.linalg.cholesky(self.entries), None, "E", True,
        )  # fmt: skip


class DualOfWrongExponent(Gram):
    @property
    def dual(self):
        inverse = torch.linalg.inv(self.entries)
        return Gram(self.space.dual, inverse @ inverse)


class Logdet(Gram):
    def logdet(self, like=None):
        return -super().logdet(like)


class DiagonalOfTheInverse(Gram):
    def diagonal(self, basis=None):
        return super().diagonal(basis) if basis is not None else self.dual.diagonal().dual


class Sums(Gram):
    def __add__(self, other):
        return Gram.of(self.space, self.entries, "", self.symmetry) + 2 * other


class Products(Gram):
    """Symmetrizes what it multiplies from the left with: the factors in the order of their names."""

    def __mul__(self, other):
        if not isinstance(other, InnerProduct):
            return super().__mul__(other)
        swapped = torch.kron(other.matrix(), self.entries)
        return Gram(self.space * other.space, swapped)


class Pencil(Gram):
    def pencil_with(self, reference, like=None):
        return super().pencil_with(reference.dual, like)


class Blend(Gram):
    def blended(self, other, weight):
        return super().blended(other, 1 - weight)


@kind("test: transposed")
class State(Gram):
    @classmethod
    def restore(cls, space, state):
        return Gram(space, torch.linalg.inv(state["matrix"]))


class Repr(Gram):
    def __repr__(self):
        return "<a metric>"


class SymmetryIsAList(Gram):
    @property
    def symmetry(self):
        return ["general"]


class RandomVectorsOfTheCovariance(Gram):
    def random_vector(self, generator=None, *batch, like=None):
        x = self.dual.random_vector(generator, *batch, like=like)
        return Vector(self.space, x.data)


def gram(cls: type[Gram]) -> Callable[[Draw], tuple[InnerProduct, Tensor]]:
    def make(draw: Draw) -> tuple[InnerProduct, Tensor]:
        M = draw.positive(3)
        return cls(Space("V", 3), M, validate=cls is not FlatIsSharp), M

    return make


def not_symmetric(draw: Draw) -> tuple[InnerProduct, Tensor]:
    M = draw.positive(3)
    skew = draw.normal(3, 3)
    return Gram(Space("V", 3), M + skew - skew.mT, validate=False), M


def indefinite(draw: Draw) -> tuple[InnerProduct, Tensor]:
    M = draw.positive(3)
    M[0] *= 10
    M = (M + M.mT) / 2
    M[0, 0] = -5
    return Gram(Space("V", 3), M, validate=False), M


def swapped_factors(draw: Draw) -> tuple[InnerProduct, Tensor]:
    G, A = draw.positive(2), draw.positive(2)
    return Gram(Space("S", 2), G) * Gram(Space("A", 2).dual, A), torch.kron(A, G)


def restricts(draw: Draw) -> tuple[InnerProduct, Tensor]:
    G, A = draw.positive(2), draw.positive(2)
    return Restricts({"a": Gram(Space("S", 2), G), "b": Gram(Space("A", 2), A)}), torch.block_diag(G, A)


SOLVED = {"differentiation", "dual", "naturality", "round trip of covectors", "round trip of vectors", "solving"}
BUILT = {"products", "pullback", "sums and multiples"}

# the law that the error is planted against, the form with its true matrix, and the other laws that must see it
CONTROLS: list[tuple[str, Callable[[Draw], tuple[InnerProduct, Tensor]], set[str]]] = [
    ("symmetry", gram(Inner), {"pairing", "differentiation"}),
    ("symmetry", not_symmetric, SOLVED | BUILT | {
        "pairing", "batches", "blend", "dtype and device", "frame", "linearity", "logdet", "quotient", "random vectors",
    }),
    ("positivity", gram(Norm), set()),
    ("positivity", indefinite, SOLVED | BUILT | {
        "batches", "dtype and device", "frame", "linearity", "logdet", "pencil", "random vectors",
    }),
    ("pairing", gram(MatrixOfTheInverse), set()),
    ("pairing", gram(FlatGivesVectors), set()),
    ("pairing", gram(FlatIsSharp), SOLVED | BUILT | {"diagonal", "state"}),
    ("pairing", swapped_factors, (SOLVED | BUILT | {
        "blend", "diagonal", "frame", "pencil", "quotient", "random vectors",
    }) - {"round trip of vectors", "round trip of covectors"}),
    ("round trip of vectors", gram(Sharp), (SOLVED | {"batches"}) - {"dual"}),
    ("round trip of covectors", gram(Sharp), (SOLVED | {"batches"}) - {"dual"}),
    ("solving", gram(Factorization), set()),
    ("linearity", gram(Affine), {"pairing", "round trip of vectors", "round trip of covectors", "dual", "state"}),
    ("batches", gram(Batches), {"positivity"}),
    ("dtype and device", gram(TakesAnyDtype), set()),
    ("differentiation", gram(CutsTheGradient), set()),
    ("naturality", gram(PullbackByTheTranspose), {"diagonal"}),
    ("pullback", gram(PullbackForgetsTheMap), set()),
    ("restriction", restricts, set()),
    ("quotient", gram(QuotientWithoutSchur), set()),
    ("frame", gram(Frame), set()),
    ("dual", gram(DualOfWrongExponent), set()),
    ("logdet", gram(Logdet), set()),
    ("diagonal", gram(DiagonalOfTheInverse), set()),
    ("sums and multiples", gram(Sums), set()),
    ("products", gram(Products), set()),
    ("pencil", gram(Pencil), set()),
    ("blend", gram(Blend), set()),
    ("state", gram(State), set()),
    ("representation", gram(Repr), set()),
    ("inferred symmetry", gram(SymmetryIsAList), {"diagonal", "dtype and device", "dual", "frame", "state"}),
    ("random vectors", gram(RandomVectorsOfTheCovariance), set()),
]  # fmt: skip


@pytest.mark.parametrize("target, make, others", CONTROLS)
def test_a_planted_error_is_refused_exactly_where_it_shows(
    target: str, make: Callable[[Draw], tuple[InnerProduct, Tensor]], others: set[str]
) -> None:
    broken = set()
    for name, law in LAWS.items():
        try:
            law(make_case(make, Draw.seeded(1)))
        except (LawBroken, AttributeError, TypeError):  # what is no symmetry has not its methods either
            broken.add(name)
    assert broken == {target} | others


def test_every_law_has_a_planted_error() -> None:
    assert {target for target, _, _ in CONTROLS} == set(LAWS)


def test_a_broken_law_says_which_for_what_and_by_how_much() -> None:
    expected = (
        r"^the law of logdet is broken by wrong sign: logdet and that of the matrix: off by [\d.e+-]+, "
        r"allowed [\d.e-]+, of Gram\(V, matrix\) : V\* ← V \(torch.float64, seed 0\)$"
    )
    with pytest.raises(AssertionError, match=expected):
        check_laws(gram(Logdet), cases=1, dtypes=[torch.float64], name="wrong sign")


def test_all_that_is_broken_is_reported_at_once() -> None:
    with pytest.raises(LawBroken) as caught:
        check_laws(gram(Inner), cases=2, dtypes=[torch.float64])
    assert len(str(caught.value).splitlines()) == 6
    check_laws(gram(Inner), laws=set(LAWS) - {"symmetry", "pairing", "differentiation"})


# --- a kind of one's own ----------------------------------------------------------------------------------------------


class Bending(InnerProduct):
    """Squares of differences of neighbours, and of the first: a kind in ten lines, matrix-free."""

    def __init__(self, space: VectorSpace, stiffness: Tensor):
        self.space, self.stiffness = space, stiffness

    def flat_components(self, x: Tensor) -> Tensor:
        steps = torch.diff(x, dim=-1, prepend=torch.zeros_like(x[..., :1])) * self.stiffness
        return steps - torch.nn.functional.pad(steps[..., 1:], (0, 1))

    def tensors(self) -> Iterator[Tensor]:
        yield self.stiffness

    def expression(self) -> str:
        return f"Bending({self.space})"


def bending(draw: Draw) -> tuple[InnerProduct, Tensor]:
    V = draw.simple_space()
    stiffness = draw.between(0.5, 2.0, V.dim)
    D = torch.eye(V.dim).to(stiffness) - torch.diag(torch.ones(V.dim - 1).to(stiffness), -1)
    return Bending(V, stiffness), D.mT @ torch.diag(stiffness) @ D


def test_a_kind_of_ones_own_keeps_the_laws() -> None:
    assert check_laws(bending) == {
        "restriction": "its space is not a direct sum",
        "blend": "its kind is not closed under means",
        "state": "its kind keeps no state",
    }


def test_a_kind_of_ones_own_without_a_matrix() -> None:
    check_laws(lambda draw: bending(draw)[0])
    check_laws(lambda draw: bending(draw)[0], oracle=lambda g: g.matrix())
    with pytest.raises(LawBroken, match="flat against the matrix"):
        check_laws(lambda draw: bending(draw)[0], oracle=lambda g: 2 * g.matrix())


def test_a_kind_of_ones_own_claims_only_the_symmetry_of_a_constant() -> None:
    g = Bending(Space("V", 3), torch.ones(3))
    assert g.symmetry <= Gram(Space("V", 3), torch.eye(3), name="Bending(V)").symmetry
    assert not g.symmetry.keeps("V", "orthogonal") and not g.symmetry.keeps("V", "general")


def test_a_kind_of_ones_own_can_be_stored_when_it_says_how() -> None:
    @kind("test: weighted")
    class Stored(Bending):
        def own_state(self):
            return {"stiffness": self.stiffness}

        @classmethod
        def restore(cls, space, state):
            return cls(space, state["stiffness"])

    def make(draw):
        g, M = bending(draw)
        return Stored(g.space, g.stiffness), M

    assert "state" not in check_laws(make)


def test_a_kind_that_does_not_say_how_it_is_stored_says_so() -> None:
    g = Bending(Space("V", 3), torch.ones(3))
    with pytest.raises(
        NotClosed, match=r"^NotClosed in state: Bending\(V\) : V\* ← V keeps no state.*own_state and restore"
    ):
        g.state()
    with pytest.raises(NotClosed, match=r"^NotClosed in from_state: the kind 'custom' does not say how it is restored"):
        Bending.restore(g.space, {})


# --- what is drawn ----------------------------------------------------------------------------------------------------


@given(draws())
def test_matrices_are_well_conditioned(draw: Draw) -> None:
    d = draw.integer(1, 6)
    for M in (draw.positive(d), *draw.positive(d, 2)):
        assert torch.equal(M, M.mT)
        assert float(torch.linalg.cond(M)) < CONDITION * (1 + 1e-9)
        assert float(torch.linalg.eigvalsh(M).min()) > 0
    for P in (draw.invertible(d), draw.tall(d + 2, d)):
        assert float(torch.linalg.cond(P)) < CONDITION**0.5 * (1 + 1e-9)


@given(draws(), spaces())
def test_elements_are_away_from_zero_and_samples_are_definite(draw: Draw, space: VectorSpace) -> None:
    for element in (draw.vector(space, 3), draw.covector(space, 3)):
        assert bool((element.components.norm(dim=-1) >= 0.5 - 1e-9).all())
    assert float(torch.linalg.cond(draw.sample(space).moment())) < CONDITION * (1 + 1e-9)


def test_every_sort_of_space_is_drawn() -> None:
    def sorts(V: VectorSpace) -> Iterator[str]:
        yield "starred" if V.starred else type(V).__name__
        for part in (*V.factors, *(W for _, W in getattr(V, "parts", ())), *([V.of] if isinstance(V, Family) else ())):
            if part is not V:
                yield from sorts(part)

    met = {sort for seed in range(60) for sort in sorts(Draw.seeded(seed).space())}
    assert met >= {"starred", *(c.__name__ for c in (Space, Translations, Hull, Product, DirectSum, Family))}


def test_a_draw_repeats_itself() -> None:
    for name, make in KINDS.items():
        (g, M), (h, N) = make(Draw.seeded(3)), make(Draw.seeded(3))
        assert g.space == h.space and torch.equal(M, N), name
    draw = Draw.seeded(3)
    g, M = KINDS["product"](draw)
    h, N = KINDS["product"](draw.again(4))
    assert g.space == h.space and not torch.allclose(M, N)


@given(inner_products(kinds=["gram", "product"]))
def test_kinds_can_be_chosen(g: InnerProduct) -> None:
    assert g.kind in ("gram", "product")


def test_the_laws_run_without_hypothesis(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "hypothesis" else found(name, *rest)
    )
    monkeypatch.delitem(sys.modules, "riemann_ng.testing.strategies")
    with pytest.raises(
        MissingDependency,
        match=re.escape("hypothesis is not installed. Install it with: pip install 'riemann-ng[test]'"),
    ):
        importlib.import_module("riemann_ng.testing.strategies")
    check_laws(KINDS["gram"], cases=1)
