"""Where the scripts of this folder find the networks that costs are measured on."""

from riemann_ng.bench.workloads import WIDTHS, WORKLOADS, Attention, Decoder, DecoderLayer, Workload, autoencoder

__all__ = ["WIDTHS", "WORKLOADS", "Attention", "Decoder", "DecoderLayer", "Workload", "autoencoder"]
