"""Other libraries, where they are installed, doing the same to the same batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module, metadata
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..likelihoods import Bernoulli
from .quantities import DAMPING, DAMPING_OF_FACTORS, Skipped
from .timing import Work
from .workloads import Workload, copied

Run = tuple[Work, float]
"""A work, and how many units one run of it counts for."""


class Absent(Exception):
    """A library that is not installed."""


class Peer(ABC):
    """Another library: what it measures is in `works`, by quantity."""

    package: str
    module: str
    works: ClassVar[dict[str, str]]

    def knows(self, quantity: str) -> bool:
        return quantity in self.works

    def version(self) -> str:
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return "not installed"

    def work(self, quantity: str, of: Workload) -> Run:
        if self.version() == "not installed":
            raise Absent(f"not installed (pip install {self.package})")
        made: Work | Run = getattr(self, self.works[quantity])(copied(of))
        return made if isinstance(made, tuple) else (made, 1.0)

    @property
    def library(self) -> Any:
        return import_module(self.module)

    @abstractmethod
    def about(self) -> str:
        """What to know of its figures."""


class Flat(nn.Module):
    """Tokens as examples, for libraries that know one output an example."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x).flatten(0, -2)


def flat(work: Workload) -> tuple[nn.Module, Tensor, nn.Module]:
    """A module of rows of outputs, their targets, and torch's loss of them."""
    if isinstance(work.likelihood, Bernoulli):
        return work.module, work.targets.round(), nn.BCEWithLogitsLoss(reduction="mean")
    loss = nn.CrossEntropyLoss(reduction="mean")
    if work.targets.ndim > 1:
        return Flat(work.module), work.targets.flatten(), loss
    return work.module, work.targets, loss


def attention() -> AbstractContextManager[None]:
    """The kind that has second derivatives."""
    return sdpa_kernel(SDPBackend.MATH)


def linear_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Of the layers that everybody knows."""
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return [p for m in layers for p in m.parameters()]


class Curvlinops(Peer):
    """Linear operators; K-FAC of linear layers and convolutions."""

    package, module = "curvlinops-for-pytorch", "curvlinops"
    works: ClassVar[dict[str, str]] = {
        "statistics": "sampled", "empirical": "empirical", "exact": "exact", "invert": "invert", "apply": "apply",
        "fvp": "product", "cg": "cg",
    }  # fmt: skip

    def about(self) -> str:
        return "weights and biases joint; linear layers and convolutions alone"

    def operator(self, work: Workload, kind: str) -> Any:
        module, y, loss = flat(work)
        if kind == "type-2" and y.dtype.is_floating_point and work.x.shape[1] > 100:
            raise Skipped("takes a thousand passes (784 directions one by one)")
        terms = None if y.ndim > 1 or len(y) == len(work.x) else len(y) // len(work.x)
        return self.library.KFACLinearOperator(
            module, loss, linear_parameters(module), [(work.x, y)], check_deterministic=False, fisher_type=kind,
            separate_weight_and_bias=False, num_data=len(work.x), num_per_example_loss_terms=terms,
        )  # fmt: skip

    def factors(self, work: Workload, kind: str) -> Work:
        K = self.operator(work, kind)

        def run() -> None:
            K._reset_matrix_properties()
            K._input_covariances.clear()
            K._gradient_covariances.clear()
            K.compute_kronecker_factors()

        return run

    def sampled(self, work: Workload) -> Work:
        return self.factors(work, "mc")

    def empirical(self, work: Workload) -> Work:
        return self.factors(work, "empirical")

    def exact(self, work: Workload) -> Work:
        return self.factors(work, "type-2")

    def inverse(self, work: Workload) -> tuple[Any, Any, list[Tensor]]:
        K = self.operator(work, "mc")
        K.compute_kronecker_factors()

        def make() -> Any:
            return self.library.KFACInverseLinearOperator(K, damping=DAMPING_OF_FACTORS)

        return make, make(), [torch.randn_like(p) for p in K._params]

    def invert(self, work: Workload) -> Work:
        """It inverts when first applied: both together."""
        make, _, v = self.inverse(work)
        return lambda: make() @ v

    def apply(self, work: Workload) -> Work:
        _, K, v = self.inverse(work)
        return lambda: K @ v

    def ggn(self, work: Workload) -> Any:
        module, y, loss = flat(work)
        parameters = list(module.parameters())
        return self.library.GGNLinearOperator(module, loss, parameters, [(work.x, y)], check_deterministic=False)

    def product(self, work: Workload) -> Work:
        G = self.ggn(work)
        v = [torch.randn_like(p) for p in G._params]

        def run() -> None:
            with attention():
                G @ v

        return run

    def cg(self, work: Workload) -> Work:
        G = self.ggn(work)
        v = torch.cat([torch.randn_like(p).flatten() for p in G._params])

        def solve() -> None:
            x, r = torch.zeros_like(v), v.clone()
            p, rho = r.clone(), r @ r
            for _ in range(10):
                with attention():
                    q = G @ p + DAMPING * p
                alpha = rho / (p @ q)
                x += alpha * p
                r -= alpha * q
                new = r @ r
                p = r + new / rho * p
                rho = new

        return solve


class NNGeometry(Peer):
    """Matrices of the Fisher in several shapes."""

    package, module = "nngeometry", "nngeometry.metrics"
    works: ClassVar[dict[str, str]] = {"statistics": "sampled", "invert": "invert", "apply": "apply"}

    def about(self) -> str:
        return "K-FAC of linear layers and convolutions"

    def make(self, work: Workload) -> Callable[[], Any]:
        if work.targets.ndim > 1 and not isinstance(work.likelihood, Bernoulli):
            raise Skipped("K-FAC of one output an example alone")
        if isinstance(work.likelihood, Bernoulli):
            raise Skipped("samples labels of several Bernoulli outputs in no K-FAC")
        objects = import_module("nngeometry.object")
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(work.x, work.targets), batch_size=len(work.x)
        )
        return lambda: self.library.FIM_MonteCarlo(work.module, loader, objects.PMatKFAC, trials=1)

    def sampled(self, work: Workload) -> Work:
        return self.make(work)

    def invert(self, work: Workload) -> Work:
        F = self.make(work)()
        return lambda: F.inverse(regul=DAMPING_OF_FACTORS)

    def apply(self, work: Workload) -> Work:
        F = self.make(work)().inverse(regul=DAMPING_OF_FACTORS)
        vectors = import_module("nngeometry.object.vector")
        numbers = torch.cat([torch.randn_like(p).flatten() for p in work.module.parameters()])
        v = vectors.PVector(self.library.LayerCollection.from_model(work.module), vector_repr=numbers)
        return lambda: F.mv(v)


class BackPACK(Peer):
    """Extensions of the backward pass, and products with the Gauss-Newton matrix from a kept graph."""

    package, module = "backpack-for-pytorch", "backpack"
    works: ClassVar[dict[str, str]] = {"statistics": "sampled", "exact": "exact", "fvp": "product"}

    def about(self) -> str:
        return "factors of sequences of layers; its extensions want a loss of torch"

    def factors(self, work: Workload, extension: Any) -> Work:
        model = work.module
        if not isinstance(model, nn.Sequential):
            raise Skipped("extends sequences of layers")
        _, y, loss = flat(work)
        model, loss = self.library.extend(model), self.library.extend(loss)

        def run() -> None:
            model.zero_grad()
            with self.library.backpack(extension):
                loss(model(work.x), y).backward()

        return run

    def sampled(self, work: Workload) -> Work:
        return self.factors(work, import_module("backpack.extensions").KFAC(mc_samples=1))

    def exact(self, work: Workload) -> Work:
        if isinstance(work.likelihood, Bernoulli):
            raise Skipped("784 directions at once do not fit")
        return self.factors(work, import_module("backpack.extensions").KFLR())

    def product(self, work: Workload) -> Work:
        of = import_module("backpack.hessianfree.ggnvp").ggn_vector_product_from_plist
        module, y, loss = flat(work)
        parameters = list(module.parameters())
        with attention():
            z = module(work.x)
            value = loss(z, y)
        v = [torch.randn_like(p) for p in parameters]
        return lambda: of(value, z, parameters, v)


class ASDL(Peer):
    """K-FAC inside the backward pass."""

    package, module = "asdfghjkl", "asdl"
    works: ClassVar[dict[str, str]] = {"step-sampled": "sampled", "step-empirical": "empirical"}

    def about(self) -> str:
        return "layers without a joint bias; moments averaged in place"

    def loop(self, work: Workload, kind: str) -> Run:
        if kind == "fisher_mc" and isinstance(work.likelihood, Bernoulli):
            raise Skipped("samples labels of a softmax or of a Gaussian")
        module, y, loss = flat(work)
        interval = self.library.PreconditioningConfig(
            data_size=1, damping=1e-1, ema_decay=0.1, curvature_upd_interval=1, preconditioner_upd_interval=10
        )
        maker = self.library.KfacGradientMaker(module, interval, fisher_type=kind)
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9)

        def ten() -> None:
            for _ in range(10):
                optimizer.zero_grad()
                z = maker.setup_model_call(module, work.x)
                maker.setup_loss_call(loss, z, y)
                with patch.multiple(torch.cuda.nvtx, range_push=str, range_pop=int):  # it marks ranges on the CPU too
                    maker.forward_and_backward()
                optimizer.step()

        return ten, 10.0

    def sampled(self, work: Workload) -> Run:
        return self.loop(work, "fisher_mc")

    def empirical(self, work: Workload) -> Run:
        return self.loop(work, "fisher_emp")


def ten_of(work: Workload, optimizer: torch.optim.Optimizer) -> Run:
    def ten() -> None:
        for _ in range(10):
            optimizer.zero_grad()
            work.loss(work.module(work.x)).backward()
            optimizer.step()

    return ten, 10.0


class SINGD(Peer):
    """K-FAC without inverses."""

    package, module = "singd", "singd.optim.optimizer"
    works: ClassVar[dict[str, str]] = {"step-default": "step"}

    def about(self) -> str:
        return "statistics at every tenth step, where the default has them at every fifth"

    def step(self, work: Workload) -> Run:
        return ten_of(work, self.library.SINGD(work.module, lr=1e-4, T=10, warn_unsupported=False))


class PytorchOptimizer(Peer):
    """SOAP, whose frames are renewed at every tenth step."""

    package, module = "pytorch_optimizer", "pytorch_optimizer"
    works: ClassVar[dict[str, str]] = {"step-default": "step"}

    def about(self) -> str:
        return "another method than a Fisher's, for scale"

    def step(self, work: Workload) -> Run:
        return ten_of(work, self.library.SOAP(work.module.parameters(), lr=1e-4))


PEERS: dict[str, Peer] = {
    "curvlinops": Curvlinops(), "nngeometry": NNGeometry(), "backpack": BackPACK(), "asdfghjkl": ASDL(),
    "singd": SINGD(), "pytorch_optimizer": PytorchOptimizer(),
}  # fmt: skip
