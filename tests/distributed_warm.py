"""Imported once by the server that test processes are forked from: what a first step costs is then behind them."""

import torch
from distributed_cases import EVERY, QUADRATIC, Exact, joint

torch.set_num_threads(1)
joint(2, [8], estimator=Exact(), schedule=EVERY, **QUADRATIC)
