"""Subjects whose truth is known: brains and bodies bent by exact maps, and shapes drawn by rule.

`maps` has the maps and what follows from them, `brains` and `bodies` what is bent, `scanners` what is seen of it;
`eyes` are photographs of their own kind.
"""

from .bodies import (
    HEAD_AND_NECK,
    HEART_LABELS,
    ORGANS,
    PROSTATE_LABELS,
    SEQUENCES,
    cardiac_cohort,
    digit_cohort,
    head_cohort,
    hippocampus_cohort,
    longitudinal_masks,
    organ_cohort,
    prostate_cohort,
    prostate_pairs,
    thorax_cohorts,
    thorax_pair,
)
from .brains import BRAIN_CENTER_MM, LABEL_NAMES, Template, brain_cohort, mni152
from .eyes import Eye, EyePair, eye, retina_pair
from .maps import Cohort, Pair, SmoothMap, Subject, Truth
from .scanners import ct, mri, ultrasound
from .shapes import circle, cshape, grid_lines, letter_f

__all__ = [
    "BRAIN_CENTER_MM",
    "HEAD_AND_NECK",
    "HEART_LABELS",
    "LABEL_NAMES",
    "ORGANS",
    "PROSTATE_LABELS",
    "SEQUENCES",
    "Cohort",
    "Eye",
    "EyePair",
    "Pair",
    "SmoothMap",
    "Subject",
    "Template",
    "Truth",
    "brain_cohort",
    "cardiac_cohort",
    "circle",
    "cshape",
    "ct",
    "digit_cohort",
    "eye",
    "grid_lines",
    "head_cohort",
    "hippocampus_cohort",
    "letter_f",
    "longitudinal_masks",
    "mni152",
    "mri",
    "organ_cohort",
    "prostate_cohort",
    "prostate_pairs",
    "retina_pair",
    "thorax_cohorts",
    "thorax_pair",
    "ultrasound",
]
