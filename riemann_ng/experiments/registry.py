"""The reproductions by name. Each is a module of this folder with an `EXPERIMENT`, imported when asked for."""

from __future__ import annotations

import difflib
from importlib import import_module

from ..errors import RiemannError
from .base import Experiment

EXPERIMENTS: dict[str, str] = {
    "kfac-as-metric": "kfac_as_metric",
    "deep-linear": "deep_linear",
    "fisher-variance": "fisher_variance",
    "low-rank-rnn": "low_rank_rnn",
    "structured": "structured",
    "whitening": "whitening",
    "adaptive-and-kfac": "adaptive_and_kfac",
    "layerwise-lqr": "layerwise_lqr",
    "beyond": "beyond",
    "orthogonal-natural-gradient": "orthogonal_natural_gradient",
    "revisiting": "revisiting",
}


class UnknownExperiment(RiemannError):
    """A name that no reproduction has."""


def experiment(name: str) -> Experiment:
    """The reproduction of this name."""
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownExperiment(
            f"UnknownExperiment: no reproduction is called {name!r}; {hint}There are {', '.join(EXPERIMENTS)}, and all."
        )
    found: Experiment = import_module(f".{EXPERIMENTS[name]}", __package__).EXPERIMENT
    return found
