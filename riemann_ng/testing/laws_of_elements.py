"""The laws that bind a form to its elements."""

from __future__ import annotations

import torch
from torch import Tensor

from ..elements import Covector, Vector
from ..errors import DtypeMismatch
from ..solvers import Auto, Cholesky, Eigen, Solver, explain
from ..spaces import DirectSum
from .cases import Case, LawBroken, law


@law
def symmetry(case: Case) -> None:
    """g(v, w) == g(w, v)."""
    v, w = case.vector(5), case.vector(5)
    scale = case.form.norm(v) * case.form.norm(w)
    case.agree(case.form.inner(v, w), case.form.inner(w, v), "inner(v, w) and inner(w, v)", scale)


@law
def positivity(case: Case) -> None:
    """g(v, v) > 0 away from zero, and its root is the norm."""
    v = case.vector(5)
    squares = case.form.inner(v, v)
    case.require(bool((squares > 0).all()), f"inner(v, v) goes down to {float(squares.min()):.1e}")
    case.agree(case.form.norm(v) ** 2, squares, "norm(v)² and inner(v, v)")


@law
def pairing(case: Case) -> None:
    """flat(v)(w) == g(v, w) == vᵀ M w; the matrix and its diagonal are those of M."""
    v, w, M = case.vector(), case.vector(), case.matrix
    xi = case.form.flat(v)
    case.require(isinstance(xi, Covector) and xi.space == case.form.space, f"flat gives {xi}")
    case.agree(xi.components, M @ v.components, "flat against the matrix")
    case.agree(case.form.flat_components(torch.eye(case.dim).to(M)), M, "flat on the basis against the matrix")
    expected = v.components @ M @ w.components
    size = M.norm() * v.components.norm() * w.components.norm()
    case.agree(xi(w), expected, "flat(v)(w) against the matrix", size)
    case.agree(case.form.inner(v, w), expected, "inner(v, w) against the matrix", size)
    case.agree(case.form.matrix(M), M, "matrix()")
    case.agree(case.form.diagonal_entries(M), M.diagonal(), "diagonal_entries()")


@law
def round_trip_of_vectors(case: Case) -> None:
    """sharp(flat(v)) == v."""
    v = case.vector()
    back = case.form.sharp(case.form.flat(v))
    case.require(isinstance(back, Vector) and back.space == case.form.space, f"sharp gives {back}")
    case.agree(back.data, v.data, "sharp(flat(v)) and v")


@law
def round_trip_of_covectors(case: Case) -> None:
    """flat(sharp(ξ)) == ξ."""
    xi = case.covector()
    case.agree(case.form.flat(case.form.sharp(xi)).data, xi.data, "flat(sharp(ξ)) and ξ")


@law
def solving(case: Case) -> None:
    """sharp(ξ) == M⁻¹ ξ, by whichever solver; what comes out does not depend on the solver."""
    xi = case.covector()
    expected = torch.linalg.solve(case.matrix, xi.components)
    case.agree(case.form.sharp(xi).components, expected, "sharp against the matrix")
    solvers: list[Solver] = [Auto(), Cholesky(), Eigen()]
    for solver in solvers:
        solution = solver.solve(case.form, xi)
        case.agree(solution.value.components, expected, f"sharp by {solver!r}")
        case.require(solution.report.residual < 1e-2, f"a residual of {solution.report.residual:.1e} by {solver!r}")
    case.require(isinstance(explain(case.form), str), "explain gives no text")


@law
def linearity(case: Case) -> None:
    """flat and sharp are linear."""
    v, w, xi, eta = case.vector(), case.vector(), case.covector(), case.covector()
    for name, f, a, b in (("flat", case.form.flat, v, w), ("sharp", case.form.sharp, xi, eta)):
        first, second = f(a) * 2.0, f(b) * 3.0
        size = first.data.abs().max() + second.data.abs().max()
        case.agree(f(a * 2.0 - b * 3.0).data, (first - second).data, f"{name} of 2 a - 3 b", size)


@law
def batches(case: Case) -> None:
    """A batch of elements is a loop over them; elements in blocks are elements."""
    g, v, xi = case.form, case.vector(2, 3), case.covector(2, 3)
    for name, batch, one in (("flat", v, g.flat), ("sharp", xi, g.sharp), ("norm", v, g.norm)):
        whole = one(batch)
        for i, j in ((0, 0), (1, 2)):
            part = one(type(batch)(batch.space, batch.data[i, j]))
            got = (whole if isinstance(whole, Tensor) else whole.data)[i, j]
            case.agree(got, part if isinstance(part, Tensor) else part.data, f"{name} of one in a batch")
    if isinstance(g.space, DirectSum):
        case.agree(g.flat(Vector(g.space, dict(v.blocks))).data, g.flat(v).data, "flat of an element in blocks")
        case.agree(g.sharp(Covector(g.space, dict(xi.blocks))).data, g.sharp(xi).data, "sharp of an element in blocks")


@law
def dtype_and_device(case: Case) -> None:
    """Results have the dtype and device of the elements; another dtype is refused, or taken by forms without one."""
    g, v, xi = case.form, case.vector(), case.covector()
    kinds = [
        (r.dtype, r.device.type)
        for r in (g.flat(v), g.sharp(xi), g.inner(v, v), g.logdet(v.data), g.frame(v.data).matrix(v.data))
    ]
    case.require(set(kinds) == {(v.dtype, v.device.type)}, f"{v} gave results in {set(kinds)}")
    case.require(g.dtype in (None, v.dtype), f"its dtype is {g.dtype}, that of its elements {v.dtype}")
    other = torch.float32 if v.dtype == torch.float64 else torch.float64
    if g.dtype is None:
        case.require(g.sharp(g.flat(v.to(other))).dtype == other, f"a form without a dtype changes {other}")
        return
    for call, element in ((g.flat, v), (g.sharp, xi)):
        try:
            call(element.to(other))
        except DtypeMismatch:
            continue
        raise LawBroken(f"an element in {other} is taken in silence by a form in {g.dtype}, {g!r}")


@law
def differentiation(case: Case) -> None:
    """Autograd goes through: the differential of ½ g(v, v) is flat(v), of ½ ξ(sharp ξ) is sharp(ξ); multiples too."""
    g = case.form
    v, xi = case.vector(), case.covector()
    v.data.requires_grad_(), xi.data.requires_grad_()
    (dv,) = torch.autograd.grad(g.inner(v, v) / 2, v.data)
    case.agree(dv, (case.matrix @ v.components).reshape(v.data.shape), "the differential of ½ g(v, v)")
    sharp = g.sharp(xi)
    (dxi,) = torch.autograd.grad(sharp.components @ xi.components / 2, xi.data)
    case.agree(dxi.flatten(), case.inverse @ xi.components, "the differential of ½ ξ(sharp ξ)")
    c = torch.tensor(2.0, dtype=case.draw.dtype, device=case.draw.device, requires_grad=True)
    energy = (c * g).sharp(xi.detach()).components @ xi.components.detach()
    (dc,) = torch.autograd.grad(energy, c)
    case.agree(dc, -energy / 2, "the differential of ξ((c g).sharp ξ) by c")
