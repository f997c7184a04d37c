"""The bug zoo: mistakes that registration code makes, each of which some chapter must notice.

`apply(name)` puts one of them into reglib while it runs; reglib itself never knows. Every mistake replaces public
functions, in their own module and wherever another module of reglib has imported them by name.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bug:
    """A mistake in one sentence, the chapter whose checks must go red, and the function that makes it."""

    description: str
    caught_by: str
    apply: Callable[[], None]


BUGS: dict[str, Bug] = {}


def apply(name: str) -> None:
    """Put the named bug into reglib for the rest of this process."""
    if name not in BUGS:
        raise ValueError(f"REGLIB_BUG must be one of {', '.join(BUGS)}; got {name!r}.")
    BUGS[name].apply()


def bug(caught_by: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Add a function to the zoo under its own name, with its docstring as the description."""

    def add(make: Callable[[], None]) -> Callable[[], None]:
        BUGS[make.__name__] = Bug((make.__doc__ or "").strip(), caught_by, make)
        return make

    return add


def replace(owner: Any, name: str, make_wrong: Callable[..., Any]) -> None:
    """Replace `owner.name` by `make_wrong(right, *arguments)`, in every module of reglib that holds the same one."""
    right = getattr(owner, name)

    @functools.wraps(right)
    def wrong(*arguments: Any, **options: Any) -> Any:
        return make_wrong(right, *arguments, **options)

    setattr(owner, name, wrong)
    modules = [module for key, module in list(sys.modules.items()) if key.split(".")[0] == "reglib"]
    for module in modules:
        for key, value in list(vars(module).items()):
            if value is right:
                setattr(module, key, wrong)


@bug(caught_by="11")
def half_voxel() -> None:
    """Samples as if align_corners were False: every read is up to half a voxel off."""
    from reglib import field

    def warp(right, moving, ddf, **options):
        moved = ddf.clone()
        for k, n in enumerate(ddf.shape[2:]):
            line = moved.new_tensor(range(n)).reshape([-1 if j == k else 1 for j in range(ddf.shape[1])])
            target = line + ddf[:, k]
            moved[:, k] = target * n / max(n - 1, 1) - 0.5 - line
        return right(moving, moved, **options)

    replace(field, "warp", warp)


@bug(caught_by="11")
def swapped_axes() -> None:
    """Reads the components of a ddf in the order x, y, z of grid_sample instead of the tensor's axes."""
    from reglib import field

    replace(field, "warp", lambda right, moving, ddf, **options: right(moving, ddf.flip(1), **options))


@bug(caught_by="11")
def wrong_direction() -> None:
    """Pushes instead of pulls: warped[p] = moving[p - ddf[p]]."""
    from reglib import field

    replace(field, "warp", lambda right, moving, ddf, **options: right(moving, -ddf, **options))


@bug(caught_by="11")
def unscaled_resize() -> None:
    """Resizes a field and forgets that its values are counted in voxels of the old grid."""
    from reglib import field, filters

    replace(field, "resize_ddf", lambda right, ddf, shape: filters.resize(ddf, shape))


@bug(caught_by="11")
def mm_as_voxels() -> None:
    """Takes displacements in mm for displacements in voxels, and the other way round."""
    from reglib import field, grid

    replace(field, "convert_ddf", lambda right, ddf, *grids, **axes: ddf)
    replace(grid.Grid, "vectors", lambda right, self, vectors, **axes: vectors)


@bug(caught_by="11")
def points_with_image_direction() -> None:
    """Moves points the way the image moves: x - ddf(x)."""
    from reglib import field

    replace(field, "warp_points", lambda right, points, ddf: 2 * points - right(points, ddf))


@bug(caught_by="11")
def linear_labels() -> None:
    """Interpolates label numbers: between 1 and 3 lies a 2 that nobody drew."""
    from reglib import field

    def warp_labels(right, labels, ddf, *, method, **grids):
        return field.warp(labels.float(), ddf.float(), padding="zeros", **grids).round().to(labels.dtype)

    replace(field, "warp_labels", warp_labels)


@bug(caught_by="11")
def missing_identity() -> None:
    """Takes the Jacobian of the displacement for that of the map: grad u without I."""
    from reglib import field

    def rows(right, ddf, a, b):
        return [[x - float(j == k) for j, x in enumerate(row)] for k, row in enumerate(right(ddf, a, b))]

    replace(field.calculus, "_jacobian_rows", rows)  # what jacobian and jacobian_determinant share


@bug(caught_by="80")
def undivided_homography() -> None:
    """Forgets that the third number of a homography divides the other two."""
    from reglib.keypoints import homography

    def apply(right, matrix, points):
        return points @ matrix[:2, :2].T + matrix[:2, 2]

    replace(homography, "apply_homography", apply)


@bug(caught_by="82")
def exchanged_control_points() -> None:
    """Takes the columns of a file of control points for query first; they are reference first."""
    from reglib.keypoints import scores

    def pairs(right, folder):
        for pair in right(folder):
            yield pair._replace(query_points=pair.reference_points, reference_points=pair.query_points)

    replace(scores, "fire_pairs", pairs)
