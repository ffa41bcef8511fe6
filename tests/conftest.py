"""How long Hypothesis searches, and that no test leaves torch's default dtype changed for the next.

`RIEMANN_NG_PROFILE=thorough` (what `make thorough` sets) looks long and at new examples each time; the default, `ci`,
is short and always the same. A test never fixes its own number of examples; one that needs more multiplies:
`@settings(max_examples=3 * settings.default.max_examples)`.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# Hypothesis has habits of its own where CI is set; ours start from its default, so they are the same everywhere. No
# test fails for the speed of the machine.
UNTIMED = settings(settings.get_profile("default"), deadline=None, suppress_health_check=[HealthCheck.too_slow])

settings.register_profile("ci", UNTIMED, derandomize=True, max_examples=100)
settings.register_profile("thorough", UNTIMED, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("RIEMANN_NG_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def the_default_dtype_stays():
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)
