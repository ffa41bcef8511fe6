"""Chains of layers, and torch modules read as such."""

from . import expansions as expansions
from . import readers as readers
from . import recurrent as recurrent
from .blocks import Reader as Reader
from .blocks import register_layer as register_layer
from .estimators import CurvatureProp as CurvatureProp
from .estimators import Empirical as Empirical
from .estimators import Estimator as Estimator
from .estimators import Exact as Exact
from .estimators import InputsOnly as InputsOnly
from .estimators import Linearized as Linearized
from .estimators import MonteCarlo as MonteCarlo
from .network import Network as Network
from .observation import LayerObservation as LayerObservation
from .observation import Observation as Observation
from .tape import Tape as Tape
