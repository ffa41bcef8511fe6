"""Frames on the spaces of a network, and the same network seen in them."""

from .block_frames import BlockFrame as BlockFrame
from .frame import Frame as Frame
from .frames import Frames as Frames
from .groups import NAMES as GROUPS
from .groups import InvalidFrames as InvalidFrames
from .groups import NoTwin as NoTwin
from .in_frames import InFrames as InFrames
from .in_frames import in_frames as in_frames
from .making import reparametrize as reparametrize
from .native import FrameLayer as FrameLayer
from .native import layer_tangent_map as layer_tangent_map
from .native import reparametrize_layer as reparametrize_layer
from .output import MovedLikelihood as MovedLikelihood
from .output import MovedOutput as MovedOutput
from .parameters import Change as Change
from .parameters import LinearChange as LinearChange
from .parameters import SmoothChange as SmoothChange
from .parameters import reparametrize_parameters as reparametrize_parameters
from .places import KINDS as KINDS
from .places import Places as Places
from .places import admissible as admissible
from .places import spaces as spaces
from .twin import Twin as Twin

__all__ = [
    "GROUPS", "KINDS", "BlockFrame", "Change", "Frame", "FrameLayer", "Frames", "InFrames", "InvalidFrames",
    "LinearChange", "MovedLikelihood", "MovedOutput", "NoTwin", "Places", "SmoothChange", "Twin", "admissible",
    "in_frames", "layer_tangent_map", "reparametrize", "reparametrize_layer", "reparametrize_parameters", "spaces",
]  # fmt: skip
