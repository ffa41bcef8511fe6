"""The invariance suite: to which changes of coordinates is a metric, an optimizer or an update blind?

    report = check_invariance(optimizer(lambda model: Adam(model.parameters(), lr=1e-2)), model, x, y, Categorical())
    print(report)

The same training is run twice, on a model and on its twin, the same function in other coordinates; a method that is
invariant makes the same predictions after every step. Every group of changes gets one of four verdicts: held, refuted
with a counterexample, undecided, not applicable.
"""

from .checking import assert_invariant as assert_invariant
from .checking import check_invariance as check_invariance
from .problems import InvalidSubject as InvalidSubject
from .records import Cell as Cell
from .records import Counterexample as Counterexample
from .records import InvarianceReport as InvarianceReport
from .shrinking import discrepancy as discrepancy
from .subjects import Subject as Subject
from .subjects import direction as direction
from .subjects import metric as metric
from .subjects import norm as norm
from .subjects import optimizer as optimizer
from .subjects import update as update
from .suite import InvarianceSuite as InvarianceSuite
