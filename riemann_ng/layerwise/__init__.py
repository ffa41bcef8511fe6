"""Exact second-order steps by going through a network layer by layer."""

from .quadratic import LossModel as LossModel
from .quadratic import gauss_newton_model as gauss_newton_model
from .quadratic import newton_model as newton_model
from .steps import Step as Step
from .steps import gauss_newton_step as gauss_newton_step
from .steps import newton_step as newton_step

__all__ = ["LossModel", "Step", "gauss_newton_model", "gauss_newton_step", "newton_model", "newton_step"]
