"""Brains bent from the MNI152 template by maps that are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import field, filters
from ..grid import Axes, Grid
from .maps import Cohort, SmoothMap, Subject, oblique_grid, random_map
from .scanners import mri

LABEL_NAMES: dict[int, str] = {
    side * 3 + k + 1: f"{('left', 'right')[side]} {tissue}"
    for side in (0, 1)
    for k, tissue in enumerate(("CSF", "gray matter", "white matter"))
}
BRAIN_CENTER_MM = (0.0, -17.0, 6.0)  # middle of the template's brain, MNI152 world
SLICE_MM = 8.0  # height of the axial slice that 2-D cohorts show


class Template(NamedTuple):
    """MNI152 T1 in [0, 1] and its tissue-by-hemisphere labels, (1, 1, *s), on one grid."""

    image: Tensor
    labels: Tensor
    grid: Grid


@lru_cache(maxsize=1)
def mni152() -> Template:
    """The MNI152 T1 template with six labels (`LABEL_NAMES`) at 1 mm, from the files inside nilearn's wheel.

    Source: Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033 (2009a nonlinear symmetric, skull-stripped).
    """
    import nibabel

    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise ImportError(
            "the bundled brain comes from the package nilearn, which is not installed: pip install nilearn"
        )
    folder = Path(spec.origin).parent / "datasets" / "data"
    images: dict[str, Any] = {}
    for name in ("t1", "gm", "wm"):
        images[name] = nibabel.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
    t1, gray, white = (np.asarray(images[k].dataobj, dtype=np.float32) for k in ("t1", "gm", "wm"))
    t1, gray, white = t1 / t1.max(), gray / gray.max(), white / white.max()
    fluid = 1 - gray - white
    tissue = np.where((white > gray) & (white > fluid), np.uint8(3), np.where(gray > fluid, np.uint8(2), np.uint8(1)))
    grid = Grid.from_nifti(images["t1"])
    matrix = grid.world_from_voxel.numpy()[0]
    i, j, k = np.ogrid[tuple(slice(n) for n in grid.shape)]
    right = matrix[0] * i + matrix[1] * j + matrix[2] * k + matrix[3] > 0
    labels = (tissue + np.uint8(3) * right) * (t1 > 0)
    return Template(torch.from_numpy(t1)[None, None], torch.from_numpy(labels)[None, None].long(), grid)


@lru_cache(maxsize=2)
def _blurred(sigma: float) -> Tensor:
    """The template's image smoothed against aliasing; sigma in its voxels, which are 1 mm."""
    return filters.gaussian(mni152().image, sigma=sigma)


# -- the cohort ---------------------------------------------------------------------------------------------------
def brain_cohort(
    n: int,
    *,
    seed: int = 0,
    shape: Sequence[int] = (64, 64, 64),
    spacing: float | Sequence[float] = 3.0,
    strength_mm: float = 5.0,
    oblique: bool = False,
    noise: float = 0.02,
    bias: float = 0.15,
    contrast: float = 0.2,
) -> Cohort:
    """`n` different brains made from MNI152 by random diffeomorphisms that are known exactly.

    Args:
        shape, spacing: of each subject's grid; two sizes give an axial slice.
        strength_mm: how far the smooth part of a subject's map moves the brain on average; 0 = the template itself.
        oblique: give each subject its own header: turned by up to 20 degrees, unequal spacing, another axis order.
        noise, bias, contrast: spread of the added noise, of the log of the bias field, and of the log of gamma.

    Same seed, same bytes on one machine and thread count; 1e-4 elsewhere.
    """
    d = len(tuple(shape))
    grid = Grid.centered(shape, spacing, center=BRAIN_CENTER_MM[:d])
    subjects = []
    for index in range(n):
        rng = np.random.default_rng([seed, index, 1])
        template_from_subject = random_map(rng, BRAIN_CENTER_MM[:d], strength_mm)
        subject_grid = oblique_grid(rng, grid) if oblique else grid
        image, labels = _draw_brain(template_from_subject, subject_grid)
        image = mri(rng, image, subject_grid, noise=noise, bias=bias, contrast=contrast)
        subjects.append(Subject(image, labels, subject_grid, template_from_subject))
    return Cohort(tuple(subjects), seed)


def _draw_brain(template_from_subject: SmoothMap, grid: Grid) -> tuple[Tensor, Tensor]:
    """The template's image (linear) and labels (nearest) read where each voxel of `grid` comes from."""
    template = mni152()
    x = grid.coordinates(Axes.WORLD, dtype=torch.float64).flatten(0, -2)
    y = template_from_subject.points(x)
    if grid.dim == 2:
        y = torch.cat([y, torch.full_like(y[:, :1], SLICE_MM)], dim=1)
    voxels = template.grid.points(y, to=Axes.VOXEL, from_=Axes.WORLD).float().unsqueeze(0)
    mean_spacing = float(np.mean(grid.spacing))
    smooth = _blurred(0.5 * mean_spacing if mean_spacing > 1.2 else 0.0)
    image = field.sample(smooth, voxels, padding="zeros")
    labels = field.sample(template.labels.float(), voxels, mode="nearest", padding="zeros").long()
    return image.reshape(1, 1, *grid.shape), labels.reshape(1, 1, *grid.shape)
