"""Which slice of an image is drawn, and where it is in millimeters.

Convention:
    Neurological: the reader's left is the subject's left. Pictures look along the axes of the image's own grid,
    listed as the closest of right, anterior, superior, and run in mm: R and A to the right, A and S upward.
    These mm equal the world's wherever the grid is not oblique; an oblique grid is drawn as if turned straight
    about its own center.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..field import jacobian_determinant
from ..grid import Axes, Grid, apply_affine

PlaneName = Literal["axial", "coronal", "sagittal"]
PLANE_NAMES: tuple[PlaneName, ...] = ("axial", "coronal", "sagittal")
WORLD_AXES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}  # across, up, through
LETTERS = ("LR", "PA", "IS")  # at the low and high end of each world axis
Window = tuple[float, float]


class Frame:
    """Millimeters along a grid's own axes, listed and pointing as the closest of right, anterior, superior.

    Attributes:
        axes, signs: for each world axis the closest tensor axis, and whether it runs that way (1) or back (-1).
        mm_from_voxel: (d + 1, d + 1) float64; agrees with the world at the grid's center, and everywhere if the
            grid is not oblique.
    """

    def __init__(self, grid: Grid) -> None:
        letters, d = grid.orientation, grid.dim
        self.grid = grid
        self.axes = tuple(next(k for k in range(d) if letters[k] in pair) for pair in LETTERS[:d])
        self.signs = tuple(1 if letters[k] == pair[1] else -1 for k, pair in zip(self.axes, LETTERS, strict=False))
        self.spacing = grid.spacing
        matrix = torch.eye(d + 1, dtype=torch.float64)
        matrix[:-1, :-1] = 0
        for world, (axis, sign) in enumerate(zip(self.axes, self.signs, strict=True)):
            matrix[world, axis] = sign * self.spacing[axis]
        middle = torch.tensor([(n - 1) / 2 for n in grid.shape], dtype=torch.float64)
        matrix[:-1, -1] = torch.tensor(grid.center, dtype=torch.float64) - matrix[:-1, :-1] @ middle
        self.mm_from_voxel = matrix

    def mm(self, voxel: Sequence[float]) -> tuple[float, ...]:
        """Where a voxel position is, in mm."""
        return tuple(apply_affine(self.mm_from_voxel, torch.tensor(voxel, dtype=torch.float64)).tolist())

    def voxel(self, mm: Sequence[float]) -> tuple[float, ...]:
        """The voxel position of a point given in mm."""
        inverse = torch.linalg.inv(self.mm_from_voxel)
        return tuple(apply_affine(inverse, torch.tensor(mm, dtype=torch.float64)).tolist())

    def world(self, mm: Sequence[float]) -> tuple[float, ...]:
        """The world position of a point given in mm along the grid's axes."""
        voxel = torch.tensor(self.voxel(mm), dtype=torch.float64)
        return tuple(apply_affine(self.grid.world_from_voxel, voxel).tolist())

    def range(self, world_axis: int) -> tuple[float, float]:
        """First and last voxel center along one axis, mm."""
        n = self.grid.shape[self.axes[world_axis]]
        ends = self.mm([0] * self.grid.dim)[world_axis], self.mm([n - 1] * self.grid.dim)[world_axis]
        return min(ends), max(ends)


@lru_cache(maxsize=64)
def _frame(shape: tuple[int, ...], matrix: tuple[float, ...]) -> Frame:
    d = len(shape) + 1
    return Frame(Grid(shape, torch.tensor(matrix, dtype=torch.float64).reshape(d, d)))


def frame_of(grid: Grid) -> Frame:
    """The frame of a grid, made once."""
    return _frame(grid.shape, tuple(grid.world_from_voxel.flatten().tolist()))


@dataclass(frozen=True)
class Plane:
    """One slice of a grid, ready to be drawn in mm.

    Args: index: voxel number along the tensor axis that the slice cuts; 0 in 2-D.
    """

    frame: Frame
    name: PlaneName
    index: int

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """Tensor axes that run across, up and, in 3-D, through the picture."""
        world = WORLD_AXES[self.name][: self.frame.grid.dim]
        return tuple(self.frame.axes[w] for w in world)

    @cached_property
    def signs(self) -> tuple[int, ...]:
        """1 where the tensor axis runs as the picture does, else -1."""
        return tuple(self.frame.signs[w] for w in WORLD_AXES[self.name][: self.frame.grid.dim])

    @cached_property
    def spacing(self) -> tuple[float, float]:
        """Size of a voxel across and up, mm."""
        return self.frame.spacing[self.axes[0]], self.frame.spacing[self.axes[1]]

    @cached_property
    def centers(self) -> tuple[np.ndarray, np.ndarray]:
        """Voxel centers across (w,) and up (h,), mm, ascending."""
        lines = []
        for world, axis, step in zip(WORLD_AXES[self.name], self.axes[:2], self.spacing, strict=False):
            lines.append(self.frame.range(world)[0] + step * np.arange(self.frame.grid.shape[axis]))
        return lines[0], lines[1]

    @cached_property
    def extent(self) -> tuple[float, float, float, float]:
        """Outer voxel edges: left, right, bottom, top, mm."""
        (x, y), (dx, dy) = self.centers, self.spacing
        return x[0] - dx / 2, x[-1] + dx / 2, y[0] - dy / 2, y[-1] + dy / 2

    @property
    def position_mm(self) -> float:
        """Where the slice is along the axis it cuts, mm; 3-D only."""
        voxel = [self.index if k == self.axes[2] else 0 for k in range(3)]
        return self.frame.mm(voxel)[WORLD_AXES[self.name][2]]

    @property
    def position(self) -> str:
        """Where the slice is, in words, "z = 8 mm"; empty in 2-D."""
        if len(self.axes) == 2:
            return ""
        return f"{'xyz'[WORLD_AXES[self.name][2]]} = {signed(self.position_mm)} mm"

    def moved(self, position_mm: float) -> Plane:
        """The parallel slice closest to a position in mm."""
        steps = round((position_mm - self.position_mm) / self.frame.spacing[self.axes[2]]) * self.signs[2]
        last = self.frame.grid.shape[self.axes[2]] - 1
        return Plane(self.frame, self.name, min(max(self.index + steps, 0), last))

    @property
    def labels(self) -> tuple[str, str]:
        """What the picture's axes are called."""
        across, up = ("xyz"[w] for w in WORLD_AXES[self.name][:2])
        return f"{across} [mm]", f"{up} [mm]"

    def world(self) -> tuple[float, ...]:
        """A world point on the slice: its middle."""
        voxel = [(n - 1) / 2 for n in self.frame.grid.shape]
        if len(self.axes) == 3:
            voxel[self.axes[2]] = self.index
        matrix = self.frame.grid.world_from_voxel
        return tuple(apply_affine(matrix, torch.tensor(voxel, dtype=torch.float64)).tolist())

    def cut(self, image: Tensor, *, channel: int = 0) -> np.ndarray:
        """The slice of a (1, c, *s) tensor as (h, w): rows go up, columns across."""
        values = image.detach()[0, channel]
        if len(self.axes) == 3:
            values = values.select(self.axes[2], self.index)
        if self.axes[0] < self.axes[1]:
            values = values.T
        values = values.flip([row for row, sign in ((0, self.signs[1]), (1, self.signs[0])) if sign < 0])
        return (values.float() if values.is_floating_point() else values).cpu().numpy()

    def vectors(self, ddf: Tensor) -> np.ndarray:
        """In-plane displacement across and up, (2, h, w) mm; what leaves the plane is not shown."""
        parts = zip(self.axes[:2], self.signs[:2], self.spacing, strict=True)
        return np.stack([self.cut(ddf, channel=axis) * (sign * step) for axis, sign, step in parts])

    def determinant(self, ddf: Tensor) -> np.ndarray:
        """det(I + grad u) on the slice (h, w), all axes counted; only the neighboring slices are read."""
        if len(self.axes) == 2:
            return self.cut(jacobian_determinant(ddf.detach()[:1].float()))
        axis, n = self.axes[2] + 2, ddf.shape[self.axes[2] + 2]
        first, last = max(self.index - 1, 0), min(self.index + 1, n - 1)
        slab = jacobian_determinant(ddf.detach()[:1].narrow(axis, first, last - first + 1).float())
        return Plane(self.frame, self.name, self.index - first).cut(slab)

    def nodes(self, ddf: Tensor | None = None) -> np.ndarray:
        """p + ddf[p] of every voxel p on the slice, (2, h, w) mm; without a ddf, the voxel centers."""
        x, y = np.meshgrid(*self.centers)
        return np.stack([x, y]) + (0 if ddf is None else self.vectors(ddf))


def signed(mm: float, digits: int = 0) -> str:
    """A number as people write it: a real minus, and no minus before zero."""
    return f"{round(mm, digits) + 0.0:.{digits}f}".replace("-", "\u2212")


def plane_of(image: Tensor, grid: Grid, *, name: PlaneName = "axial", world: Sequence[float] | None = None) -> Plane:
    """The slice through a world point (mm), by default through the middle of the image's nonzero voxels.

    Raises: ValueError for a plane that the grid does not have, or a point outside of it.
    """
    frame, d = frame_of(grid), grid.dim
    if name not in WORLD_AXES or (d == 2 and name != "axial"):
        known = ", ".join(PLANE_NAMES) if d == 3 else "axial, the only one a 2-D image has"
        raise ValueError(f"plane must be one of {known}; got {name!r}.")
    if d == 2:
        return Plane(frame, name, 0)
    voxel = middle(image) if world is None else voxel_at(world, grid)
    return Plane(frame, name, round(voxel[frame.axes[WORLD_AXES[name][2]]]))


def voxel_at(world: Sequence[float], grid: Grid) -> tuple[float, ...]:
    """The voxel position of a world point in mm. Raises: ValueError if it is outside the grid."""
    if len(world) != grid.dim:
        raise ValueError(f"world must be {grid.dim} numbers in mm, as the grid is {grid.dim}-D; got {tuple(world)}.")
    point = torch.tensor([float(x) for x in world], dtype=torch.float64)
    voxel = grid.points(point, to=Axes.VOXEL, from_=Axes.WORLD).tolist()
    if not all(-0.5 <= v <= n - 0.5 for v, n in zip(voxel, grid.shape, strict=True)):
        raise ValueError(
            f"world must be a point in mm inside the image; got {tuple(world)}, which is voxel "
            f"({', '.join(f'{v:.1f}' for v in voxel)}) of {grid.shape}. Its center is at {grid.center} mm."
        )
    return tuple(min(max(v, 0.0), n - 1.0) for v, n in zip(voxel, grid.shape, strict=True))


def middle(image: Tensor) -> tuple[int, ...]:
    """The voxel in the middle of the box around all nonzero voxels; of the whole image if all are zero."""
    mask = np.logical_or.reduce([(channel != 0).cpu().numpy() for channel in image.detach()[0]])
    result = []
    for axis, n in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        result.append(int(inside[0] + inside[-1]) // 2 if len(inside) else (n - 1) // 2)
    return tuple(result)


def window(*images: Tensor) -> Window:
    """The intensities drawn black and white: the 1st and 99.8th percentile of all these images together."""
    ends = [_range(image.detach()) for image in images]
    low, high = float(min(e[0] for e in ends)), float(max(e[1] for e in ends))
    return low, high if high > low else low + 1.0


def _range(image: Tensor) -> tuple[float, float]:
    apart = math.ceil((image.numel() / 100_000) ** (1 / (image.ndim - 2)))  # so many voxels are enough
    some = tuple(slice(None, None, apart if k > 1 else 1) for k in range(image.ndim))
    values = image[some].float().cpu().numpy()
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.quantile(values, (0.01, 0.998)).tolist()
    return (low, high) if high > low else (float(values.min()), float(values.max()))
