"""Samples: many elements of one space, with a measure that says how much each counts.

A sample has examples, draws (output directions or Monte Carlo draws of one example) and sites (pixels, tokens, time
steps): its data has shape (examples, draws, sites, *space.shape). Inputs are a probability sample. Cotangents weigh 1/n
per exact direction, 1/(n K) per Monte Carlo draw, and add up over sites. Padding weighs zero. So the second moment of
the inputs has (1, 1) entry one in a hull, and a product of two second moments needs no scale factor.
"""

from .data import Chunked, Compact, Data, Multiple, OneHot, WithOne, sum_of_squares
from .folded import Folded, all_of, folded, whole_folded
from .measures import Counts, Measure
from .products import gram, grams, with_borders
from .sample import Sample

__all__ = [
    "Chunked",
    "Compact",
    "Counts",
    "Data",
    "Folded",
    "Measure",
    "Multiple",
    "OneHot",
    "Sample",
    "WithOne",
    "all_of",
    "folded",
    "gram",
    "grams",
    "sum_of_squares",
    "whole_folded",
    "with_borders",
]
