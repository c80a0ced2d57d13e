"""What an output of a network sees: in theory, and in effect.

    >>> from fastconv.receptive_field import effective, theory
    >>> theory(model)[-1].extent                         # the pixels that can reach an output
    >>> field = effective(model, 257)                    # the gradient of the centre output with respect to the image
    >>> field.size, field.coverage()                     # how wide it is, and how many of those pixels it leaves out

Sources: Araujo et al., "Computing Receptive Fields of Convolutional Neural Networks", 2019 (Distill); Luo et al., "Understanding the
Effective Receptive Field in Deep Convolutional Neural Networks", 2016 (arXiv:1701.04128); Ding et al., "Scaling Up Your Kernels to 31x31",
2022 (arXiv:2203.06717); Kim et al., "Understanding Gaussian Attention Bias of Vision Transformers Using Effective Receptive Fields", 2023.
"""

from .effective import CONVENTIONS, EffectiveField, effective
from .growth import STUDIES, Growth, Stack, grow
from .initialisation import tap_scales, taps_variance, widen_
from .measures import coverage, evenness, pixels_above, square_sides, standard_deviation
from .theory import Field, fields, theory

__all__ = [
    "CONVENTIONS",
    "STUDIES",
    "EffectiveField",
    "Field",
    "Growth",
    "Stack",
    "coverage",
    "effective",
    "evenness",
    "fields",
    "grow",
    "pixels_above",
    "square_sides",
    "standard_deviation",
    "tap_scales",
    "taps_variance",
    "theory",
    "widen_",
]
