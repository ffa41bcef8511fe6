"""Typed layers: smooth maps between fields of points, with hand-written pushforward and pullback."""

from .affine import Affine, Embedding, ScaleShift, constant
from .attention import SoftmaxAttention, multihead_attention
from .base import Layer, ParameterFreeLayer, Use, product_space
from .composition import Compose, Composite, Fan, Identity, ParallelSum, ProductLayer, Select
from .convolution import Convolution, TransposedConvolution
from .evaluation import EvaluationLayer, ParametricLayer
from .normalization import BatchNormalization, GroupNormalization, LayerNormalization
from .pointwise import Nonlinearity, Pointwise, gelu, gelu_tanh, identity, relu, sigmoid, silu, softplus, tanh
from .pooling import AdaptiveAveragePool, AveragePool, Flatten, MaxPool
from .recurrent import Gates, GRUGates, LSTMGates, Recurrent, gru_cell, lstm_cell, rnn_cell

__all__ = [
    "AdaptiveAveragePool",
    "Affine",
    "AveragePool",
    "BatchNormalization",
    "Compose",
    "Composite",
    "Convolution",
    "Embedding",
    "EvaluationLayer",
    "Fan",
    "Flatten",
    "GRUGates",
    "Gates",
    "GroupNormalization",
    "Identity",
    "LSTMGates",
    "Layer",
    "LayerNormalization",
    "MaxPool",
    "Nonlinearity",
    "ParallelSum",
    "ParameterFreeLayer",
    "ParametricLayer",
    "Pointwise",
    "ProductLayer",
    "Recurrent",
    "ScaleShift",
    "Select",
    "SoftmaxAttention",
    "TransposedConvolution",
    "Use",
    "constant",
    "gelu",
    "gelu_tanh",
    "gru_cell",
    "identity",
    "lstm_cell",
    "multihead_attention",
    "product_space",
    "relu",
    "rnn_cell",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
]
