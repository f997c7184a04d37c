"""Where voxels are: the shape of an image, its world matrix, and every change of coordinates.

Convention:
    Voxel centers sit at integers; component k of a coordinate runs along tensor axis k + 2.
    World is RAS+ millimeters, as in nibabel. Matrices are float64, homogeneous, `out_from_in`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    import SimpleITK as sitk

POSITIVE = "RAS"
NEGATIVE = "LPI"


class GridMismatchError(ValueError):
    """Two tensors that must share a grid do not."""


class Axes(StrEnum):
    """The coordinate systems of a grid.

    `VOXEL` counts voxels from 0, `WORLD` is RAS+ mm, `CUBE` spans [-1, 1] between the outer edges of the
    outer voxels (`align_corners=False`), `CUBE_CORNERS` between their centers (`align_corners=True`).
    """

    VOXEL = "voxel"
    WORLD = "world"
    CUBE = "cube"
    CUBE_CORNERS = "cube_corners"


def apply_affine(matrix: Float[Tensor, "m m"], points: Float[Tensor, "*k d"]) -> Float[Tensor, "*k d"]:
    """Apply a homogeneous matrix to points: `A x + t`, in the points' dtype and device.

    Raises: ValueError if the matrix is not (d + 1, d + 1).
    """
    d = points.shape[-1]
    if matrix.shape != (d + 1, d + 1):
        raise ValueError(
            f"matrix must be ({d + 1}, {d + 1}) for points with {d} components; got {tuple(matrix.shape)}. "
            "Points are (..., d), components last."
        )
    points = points if points.is_floating_point() else points.to(torch.get_default_dtype())
    matrix = matrix.to(points)
    return points @ matrix[:-1, :-1].T + matrix[:-1, -1]


def per_axis(value: float | Sequence[float], dim: int, name: str) -> tuple[float, ...]:
    """One number for each axis, from a number or a sequence of `dim` numbers."""
    values = (float(value),) * dim if isinstance(value, int | float) else tuple(float(v) for v in value)
    if len(values) != dim:
        raise ValueError(f"{name} must be one number or {dim} numbers, one an axis; got {values}.")
    return values


class Grid:
    """A shape and the matrix that takes its voxels to the world.

    Args:
        shape: sizes along the tensor's spatial axes, two or three of them.
        world_from_voxel: (d + 1, d + 1) matrix to RAS+ mm; identity (1 mm, no rotation) if not given.

    Attributes: voxel_from_world: the inverse; both are float64.

    Raises: ValueError for sizes below 1, a matrix that is not finite, affine and invertible.
    """

    __slots__ = ("shape", "voxel_from_world", "world_from_voxel")

    shape: tuple[int, ...]
    world_from_voxel: Tensor
    voxel_from_world: Tensor

    def __init__(self, shape: Sequence[int], world_from_voxel: Any = None) -> None:
        sizes = tuple(int(n) for n in shape)
        if len(sizes) not in (2, 3) or min(sizes) < 1 or any(n != m for n, m in zip(sizes, shape, strict=True)):
            raise ValueError(f"shape must be two or three whole numbers of at least 1; got {tuple(shape)}.")
        d = len(sizes)
        matrix = torch.eye(d + 1) if world_from_voxel is None else torch.as_tensor(world_from_voxel)
        matrix = matrix.detach().to("cpu", torch.float64).clone()
        _check_matrix(matrix, d)
        object.__setattr__(self, "shape", sizes)
        object.__setattr__(self, "world_from_voxel", matrix)
        object.__setattr__(self, "voxel_from_world", torch.linalg.inv(matrix))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Grid cannot be changed ({name}); make a new one with Grid(shape, world_from_voxel).")

    def __reduce__(self) -> tuple[Any, ...]:
        return Grid, (self.shape, self.world_from_voxel)

    def __repr__(self) -> str:
        sizes = " x ".join(map(str, self.shape))
        spacing = " x ".join(f"{s:.4g}" for s in self.spacing)
        return f"Grid({sizes} voxels of {spacing} mm, {self.orientation})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.is_close(other)

    def __hash__(self) -> int:
        return hash(self.shape)

    # -- facts -----------------------------------------------------------------------------------------
    @property
    def dim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimeters between neighboring voxel centers along each axis."""
        return tuple(self.world_from_voxel[:-1, :-1].norm(dim=0).tolist())

    @property
    def origin(self) -> tuple[float, ...]:
        """World position of voxel 0, mm."""
        return tuple(self.world_from_voxel[:-1, -1].tolist())

    @property
    def direction(self) -> Tensor:
        """(d, d) float64; column k is the unit vector in the world along tensor axis k."""
        return self.world_from_voxel[:-1, :-1] / torch.tensor(self.spacing, dtype=torch.float64)

    @property
    def center(self) -> tuple[float, ...]:
        """World position of the middle of the grid, mm."""
        middle = torch.tensor([(n - 1) / 2 for n in self.shape], dtype=torch.float64)
        return tuple(apply_affine(self.world_from_voxel, middle).tolist())

    @property
    def extent(self) -> tuple[float, ...]:
        """Size of the box of whole voxels along each axis, n * spacing, mm."""
        return tuple(n * s for n, s in zip(self.shape, self.spacing, strict=True))

    @property
    def orientation(self) -> str:
        """For each tensor axis, the letter of the world direction it comes closest to: "RAS", "LIA", "RA"."""
        return "".join((POSITIVE if sign > 0 else NEGATIVE)[axis] for axis, sign in self._closest_axes())

    def is_close(self, other: Grid, *, tolerance: float = 1e-3) -> bool:
        """Same shape, and no corner voxel further apart than `tolerance` mm."""
        if self.shape != other.shape:
            return False
        return bool((self.corners() - other.corners()).norm(dim=-1).max() <= tolerance)

    # -- coordinates -----------------------------------------------------------------------------------
    def matrix(self, *, to: str, from_: str) -> Tensor:
        """(d + 1, d + 1) float64 matrix from one of the `Axes` to another."""
        return self._from_voxel(Axes(to)) @ torch.linalg.inv(self._from_voxel(Axes(from_)))

    def points(self, points: Float[Tensor, "*k d"], *, to: str, from_: str) -> Float[Tensor, "*k d"]:
        """Convert positions (components last) between two of the `Axes`."""
        return apply_affine(self.matrix(to=to, from_=from_), points)

    def vectors(self, vectors: Float[Tensor, "*k d"], *, to: str, from_: str) -> Float[Tensor, "*k d"]:
        """Convert displacements (components last): as `points`, without the translation."""
        matrix = self.matrix(to=to, from_=from_).clone()
        matrix[:-1, -1] = 0
        return apply_affine(matrix, vectors)

    def coordinates(
        self, axes: str = Axes.VOXEL, *, device: Any = None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "*s d"]:
        """Position of every voxel center in one of the `Axes`, components last."""
        ranges = [torch.arange(n, device=device, dtype=dtype) for n in self.shape]
        voxels = torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1)
        return voxels if Axes(axes) is Axes.VOXEL else self.points(voxels, to=axes, from_=Axes.VOXEL)

    def _from_voxel(self, axes: Axes) -> Tensor:
        if axes is Axes.WORLD:
            return self.world_from_voxel
        matrix = torch.eye(self.dim + 1, dtype=torch.float64)
        if axes is Axes.VOXEL:
            return matrix
        for k, n in enumerate(self.shape):
            corners = axes is Axes.CUBE_CORNERS and n > 1  # one voxel has no two corners: its edges serve
            matrix[k, k] = 2 / (n - 1) if corners else 2 / n
            matrix[k, -1] = -1 if corners else 1 / n - 1
        return matrix

    def corners(self) -> Float[Tensor, "k d"]:
        """World positions of the 2^d corner voxel centers, float64 mm."""
        ends = [torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in self.shape]
        return apply_affine(self.world_from_voxel, torch.cartesian_prod(*ends))

    def _closest_axes(self) -> list[tuple[int, int]]:
        """For each tensor axis (world axis, sign), every world axis once, the most aligned first."""
        cosines = self.direction.abs()
        found: dict[int, tuple[int, int]] = {}
        for _ in range(self.dim):
            world, voxel = divmod(int(cosines.argmax()), self.dim)
            found[voxel] = (world, 1 if self.direction[world, voxel] > 0 else -1)
            cosines[world, :] = -1
            cosines[:, voxel] = -1
        return [found[k] for k in range(self.dim)]

    # -- derived grids ---------------------------------------------------------------------------------
    def _derived(self, shape: Sequence[int], start: Sequence[float], step: Sequence[float]) -> Grid:
        """Grid whose voxel i sits at voxel `start + step * i` of this one."""
        local = torch.eye(self.dim + 1, dtype=torch.float64)
        local[:-1, :-1] = torch.diag(torch.tensor([float(s) for s in step], dtype=torch.float64))
        local[:-1, -1] = torch.tensor([float(s) for s in start], dtype=torch.float64)
        return Grid(shape, self.world_from_voxel @ local)

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> Grid:
        """Voxels `start` to `stop` (excluded) along each axis; the world position of each stays."""
        d = self.dim
        fits = len(start) == len(stop) == d and all(0 <= start[k] < stop[k] <= self.shape[k] for k in range(d))
        if not fits:
            raise ValueError(
                f"crop needs 0 <= start < stop <= shape = {self.shape}; got {tuple(start)} to {tuple(stop)}."
            )
        return self._derived([b - a for a, b in zip(start, stop, strict=True)], start, [1] * self.dim)

    def pad(self, before: Sequence[int], after: Sequence[int]) -> Grid:
        """Add voxels before the first and after the last along each axis; `crop` undoes it."""
        if not len(before) == len(after) == self.dim or min(*before, *after) < 0:
            raise ValueError(
                f"pad takes {self.dim} numbers of voxels of at least 0 before and after; got {before} and {after}. "
                "To cut, crop()."
            )
        shape = [n + a + b for n, a, b in zip(self.shape, before, after, strict=True)]
        return self._derived(shape, [-a for a in before], [1] * self.dim)

    def resize(self, shape: Sequence[int]) -> Grid:
        """Another number of voxels between the same first and last voxel centers: spacing s (n-1)/(m-1)."""
        if len(shape) != self.dim:
            raise ValueError(f"shape must have {self.dim} sizes, one an axis; got {tuple(shape)}.")
        step, start = [], []
        for n, m in zip(self.shape, shape, strict=True):
            if n == 1 and m > 1:
                raise ValueError(f"an axis with one voxel has no extent to resize to {m} voxels; use pad().")
            step.append((n - 1) / (m - 1) if m > 1 else float(n))
            start.append(0.0 if m > 1 else (n - 1) / 2)
        return self._derived(shape, start, step)

    def resample(self, spacing: float | Sequence[float]) -> Grid:
        """Another spacing in mm; the origin's center stays, the far end is rounded up to a whole voxel."""
        wanted = per_axis(spacing, self.dim, "spacing")
        if min(wanted) <= 0:
            raise ValueError(f"spacing must be above 0 mm; got {wanted}.")
        step = [w / s for w, s in zip(wanted, self.spacing, strict=True)]
        shape = [math.ceil((n - 1) / k - 1e-6) + 1 for n, k in zip(self.shape, step, strict=True)]
        return self._derived(shape, [0] * self.dim, step)

    def downsample(self, factor: float | Sequence[float], *, min_size: int = 1) -> Grid:
        """About 1/factor of the voxels along each axis, first and last centers kept, none below `min_size`."""
        factors = per_axis(factor, self.dim, "factor")
        if min(factors) < 1:
            raise ValueError(f"downsample takes factors of at least 1; got {factors}. To refine, resize().")
        return self.resize([max(math.ceil(n / f), min(n, min_size)) for n, f in zip(self.shape, factors, strict=True)])

    def pyramid(self, factors: Sequence[float], *, min_size: int = 1) -> list[Grid]:
        """One downsampled grid for each factor, in the order given."""
        return [self.downsample(factor, min_size=min_size) for factor in factors]

    def reorient(self, orientation: str) -> Grid:
        """The same voxels listed in another axis order, for example "RAS"; see also `reorient`."""
        order, flips = self._reorientation(orientation)
        shape = [self.shape[k] for k in order]
        local = torch.zeros(self.dim + 1, self.dim + 1, dtype=torch.float64)
        local[-1, -1] = 1
        for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
            local[old, new] = -1 if flip else 1
            local[old, -1] = self.shape[old] - 1 if flip else 0
        return Grid(shape, self.world_from_voxel @ local)

    def _reorientation(self, orientation: str) -> tuple[list[int], list[bool]]:
        """For each axis of the new order: the old axis, and whether it runs the other way."""
        world = [
            next((k for k in range(self.dim) if letter in (POSITIVE[k], NEGATIVE[k])), -1) for letter in orientation
        ]
        if sorted(world) != list(range(self.dim)):
            raise ValueError(
                f"orientation must name each axis once with letters of {'R/L A/P S/I'[: 4 * self.dim - 1]}, such as "
                f'"{POSITIVE[: self.dim]}"; got "{orientation}".'
            )
        closest = self._closest_axes()
        order = [next(k for k, (axis, _) in enumerate(closest) if axis == w) for w in world]
        flips = [(closest[old][1] > 0) != (letter in POSITIVE) for old, letter in zip(order, orientation, strict=True)]
        return order, flips

    # -- other libraries -------------------------------------------------------------------------------
    @classmethod
    def centered(
        cls,
        shape: Sequence[int],
        spacing: float | Sequence[float] = 1.0,
        *,
        center: Sequence[float] | None = None,
        direction: Any = None,
    ) -> Grid:
        """A grid of this spacing (mm) and direction with its middle at `center` (mm; default the world's 0)."""
        d = len(shape)
        linear = torch.eye(d, dtype=torch.float64) if direction is None else torch.as_tensor(direction).double()
        linear = linear * torch.tensor(per_axis(spacing, d, "spacing"), dtype=torch.float64)
        middle = torch.tensor([(n - 1) / 2 for n in shape], dtype=torch.float64)
        matrix = torch.eye(d + 1, dtype=torch.float64)
        matrix[:-1, :-1] = linear
        matrix[:-1, -1] = torch.tensor(center or [0.0] * d, dtype=torch.float64) - linear @ middle
        return cls(shape, matrix)

    @classmethod
    def from_nifti(cls, image: Any) -> Grid:
        """Grid of a nibabel image or header (sform if it has a code, else qform, as nibabel decides).

        A file of shape (X, Y) or (X, Y, 1) gives a 2-D grid: the in-plane part of its matrix where that lies
        in the world's x-y plane, else spacing along the two axes and no rotation.
        """
        header = getattr(image, "header", image)
        affine = torch.as_tensor(header.get_best_affine(), dtype=torch.float64)
        shape = tuple(int(n) for n in header.get_data_shape())
        if len(shape) == 3 and shape[2] == 1:
            shape = shape[:2]
        if len(shape) != 2:
            return cls(shape[:3], affine)
        in_plane = bool(affine[2, :2].abs().max() < 1e-4 * affine[:2, :2].abs().max())
        keep = [0, 1, 3]
        if in_plane:
            return cls(shape, affine[keep][:, keep])
        spacing = affine[:3, :2].norm(dim=0)
        return cls(shape, torch.diag(torch.tensor([*spacing.tolist(), 1.0], dtype=torch.float64)))

    @classmethod
    def from_sitk(cls, image: sitk.Image) -> Grid:
        """Grid of a SimpleITK image (LPS there, RAS here)."""
        d = image.GetDimension()
        direction = torch.tensor(image.GetDirection(), dtype=torch.float64).reshape(d, d)
        matrix = torch.eye(d + 1, dtype=torch.float64)
        matrix[:-1, :-1] = direction * torch.tensor(image.GetSpacing(), dtype=torch.float64)
        matrix[:-1, -1] = torch.tensor(image.GetOrigin(), dtype=torch.float64)
        return cls(image.GetSize(), _lps_ras(d) @ matrix)

    def to_sitk(self, image: Tensor | None = None) -> sitk.Image:
        """A SimpleITK image on this grid, holding `image` (*s) or zeros.

        Raises: ValueError if the axes are not at right angles, which SimpleITK cannot store.
        """
        import SimpleITK as sitk

        d = self.dim
        if not torch.allclose(self.direction.T @ self.direction, torch.eye(d, dtype=torch.float64), atol=1e-4):
            raise ValueError("SimpleITK stores only axes at right angles; this grid is sheared. Resample it first.")
        values = torch.zeros(self.shape) if image is None else image.detach().cpu()
        if tuple(values.shape) != self.shape:
            raise GridMismatchError(f"image must be {self.shape}, as its grid; got {tuple(values.shape)}.")
        result = sitk.GetImageFromArray(values.permute(*reversed(range(d))).contiguous().numpy())
        lps = _lps_ras(d) @ self.world_from_voxel
        result.SetSpacing(self.spacing)
        result.SetOrigin(lps[:-1, -1].tolist())
        result.SetDirection((lps[:-1, :-1] / torch.tensor(self.spacing, dtype=torch.float64)).flatten().tolist())
        return result


def _check_matrix(matrix: Tensor, d: int) -> None:
    last = torch.tensor([0.0] * d + [1.0], dtype=torch.float64)
    if matrix.shape != (d + 1, d + 1) or not torch.equal(matrix[-1], last):
        raise ValueError(
            f"world_from_voxel must be a ({d + 1}, {d + 1}) matrix for a {d}-D shape, with last row "
            f"{last.tolist()}; got {tuple(matrix.shape)} {matrix[-1].tolist()}."
        )
    if not bool(matrix.isfinite().all()):
        raise ValueError("world_from_voxel must be finite; it holds NaN or infinity. Is the header broken?")
    lengths = matrix[:-1, :-1].norm(dim=0)
    if bool((lengths == 0).any()) or abs(torch.linalg.det(matrix[:-1, :-1] / lengths)) < 1e-6:
        raise ValueError(f"world_from_voxel must be invertible; got {matrix[:-1, :-1].tolist()}. Is a spacing zero?")


def _lps_ras(d: int) -> Tensor:
    return torch.diag(torch.tensor([*[-1.0, -1.0, 1.0][:d], 1.0], dtype=torch.float64))


def reorient(image: Tensor, grid: Grid, orientation: str) -> tuple[Tensor, Grid]:
    """List an image's voxels in another axis order, for example "RAS"; no value is interpolated.

    Args: image: (b, c, *s) on `grid`. Returns: the image and its grid; every voxel keeps its world position.
    """
    require_on_grid(image, grid, "image")
    order, flips = grid._reorientation(orientation)
    turned = image.permute(0, 1, *(k + 2 for k in order))
    return turned.flip([k + 2 for k, flip in enumerate(flips) if flip]), grid.reorient(orientation)


def require_on_grid(image: Tensor, grid: Grid, name: str) -> None:
    """Raise GridMismatchError unless `image` is (b, c, *grid.shape)."""
    if image.ndim != grid.dim + 2 or tuple(image.shape[2:]) != grid.shape:
        raise GridMismatchError(
            f"{name} must be (b, c, {', '.join(map(str, grid.shape))}), as its grid; got {tuple(image.shape)}. "
            "Resample it with field.resample(image, its_grid, grid)."
        )


def common_grid(grids: Sequence[Grid], *, spacing: float | Sequence[float] | None = None) -> Grid:
    """The smallest grid with the axes of the first that holds every voxel center of all of them.

    Args: spacing: mm along the first grid's axes; default the smallest that any of them has along each.
    """
    if not grids:
        raise ValueError("common_grid needs at least one grid; got none.")
    first = grids[0]
    if any(grid.dim != first.dim for grid in grids):
        raise ValueError(f"common_grid needs grids of one dimension; got {[grid.dim for grid in grids]}.")
    finest = list(first.spacing)
    for grid in grids:
        along = first.direction.T @ grid.direction  # cosines, (first's axes, this one's axes)
        for k in range(first.dim):
            finest[k] = min(finest[k], grid.spacing[int(along[k].abs().argmax())])
    target = per_axis(finest if spacing is None else spacing, first.dim, "spacing")
    step = torch.tensor(target, dtype=torch.float64) / torch.tensor(first.spacing, dtype=torch.float64)
    corners = torch.cat([apply_affine(first.voxel_from_world, grid.corners()) for grid in grids])
    low, high = (corners / step).amin(0), (corners / step).amax(0)
    start = (low + 1e-6).floor()
    shape = ((high - 1e-6).ceil() - start + 1).int().tolist()
    return first._derived(shape, (start * step).tolist(), step.tolist())
