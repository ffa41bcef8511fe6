"""A counterexample as a program."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Mapping

from torch import Tensor

from ... import likelihoods, metrics, networks, norms
from ...reparametrize import Frame
from .problems import Problem
from .subjects import Metric, OfNorm, OptimizerFactory, Subject

MODULES = {"metrics": metrics, "likelihoods": likelihoods, "networks": networks, "norms": norms}
OWN = ("discrepancy", "optimizer")


def program(
    subject: Subject, problem: Problem, frames: Mapping[str, Frame], found: float, steps: int, model: str, examples: int
) -> str:
    """Code that prints the discrepancy again. `model` is the code of the model, "" where it is the user's own."""
    code = expression_of(subject)
    likelihood = repr(problem.predictive)
    known = is_known(likelihood)
    lines = ["torch.manual_seed(0)"]
    if model and known:
        lines += [f"model = {model}", f"x, y = torch.randn({examples}, 2, dtype=torch.float64), None"]
    else:
        lines += ["model, x, y = ...  # those that were checked"]
    lines += [f"likelihood = {likelihood if known else '...  # the one that was checked'}"]
    lines += [f"subject = {code or f'...  # {subject.name}'}"]
    lines += ["frames = {"]
    lines += [f"    {key!r}: {frame_code(frame)}," for key, frame in frames.items()]
    lines += ["}", f"print(discrepancy(subject, model, x, y, likelihood, frames, steps={steps}))  # {found:.2g}"]
    body = "\n".join(lines)
    return "\n".join(imports(body)) + "\n\n" + body + "\n"


def expression_of(subject: Subject) -> str:
    """The subject as an expression that stands alone, or "" where it has none."""
    if isinstance(subject, Metric) and subject.fixed is not None and subject.solver is None:
        text = repr(subject.fixed)
    elif isinstance(subject, OfNorm):
        text = repr(subject.of)
    elif isinstance(subject, OptimizerFactory):
        factory = subject.factory
        inside = subject.source
        if isinstance(factory, type) and factory.__module__.startswith("torch.optim"):
            inside = f"torch.optim.{factory.__name__}"
        text = f"optimizer({inside})" if inside else ""
    else:
        text = ""
    return text if text and is_known(text) else ""


def is_known(text: str) -> bool:
    """Whether it is an expression whose names the program imports."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    bound = {arg.arg for node in ast.walk(tree) if isinstance(node, ast.arguments) for arg in node.args}
    bound |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    free = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - bound
    known = {"torch", "nn", *OWN, *dir(builtins)}.union(*(vars(m) for m in MODULES.values()))
    return free <= known


def frame_code(frame: Frame) -> str:
    """A frame of one member by its numbers; a family's members are alike."""
    linear, shift = frame.linear, frame.shift
    if frame.members == 1:
        linear, shift = linear[0], shift[0]
    return f"Frame({numbers(linear)}, {numbers(shift)})"


def numbers(t: Tensor) -> str:
    return f"torch.tensor({t.tolist()}, dtype=torch.float64)"


def imports(body: str) -> list[str]:
    words = set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", body))
    lines = ["import torch", *(["from torch import nn"] if "nn" in words else []), ""]
    for name, module in MODULES.items():
        exported = getattr(module, "__all__", None) or [n for n in vars(module) if n[0].isupper()]
        wanted = sorted(words & set(exported))
        if wanted:
            lines.append(f"from riemann_ng.{name} import {', '.join(wanted)}")
    lines.append("from riemann_ng.reparametrize import Frame")
    lines.append(f"from riemann_ng.testing.invariance import {', '.join(n for n in OWN if n in words)}")
    return lines
