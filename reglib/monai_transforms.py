"""A registration as a step of a MONAI pipeline.

MONAI takes seconds to import; it is imported in this module alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import MapTransform
from monai.utils.enums import MetaKeys, SpaceKeys, TraceKeys
from torch import Tensor

from . import field
from .grid import Axes, Grid, GridMismatchError, require_on_grid
from .optimize import Registration
from .pipeline import Case, Settings, register_pair

FAST = Settings(quality="fast", progress=False)
IN_PLANE = 1e-4  # share of an axis that may leave the x-y plane in a 2-D image


def register_images(
    fixed: Float[Tensor, "1 c *s"],
    moving: Float[Tensor, "1 c *t"],
    *,
    fixed_grid: Grid,
    moving_grid: Grid,
    settings: Settings = FAST,
) -> Registration:
    """What `reglib register --quality fast` does between reading and writing; other `settings` by `partial`.

    Raises: ValueError for images with different numbers of channels.
    """
    if fixed.shape[1] != moving.shape[1]:
        raise ValueError(
            f"fixed and moving must have as many channels; got {fixed.shape[1]} and {moving.shape[1]}. "
            "Keep one of each, or pass a registration of your own."
        )
    case = Case(fixed, moving, fixed_grid, moving_grid, None, None, None, None, None, None, ())  # nothing else is known
    return register_pair(case, settings)


class Registerd(MapTransform, InvertibleTransform):
    """Register data["moving"] to data["fixed"] and take labels and points along; `inverse` takes all of it back.

    Put it after LoadImaged and EnsureChannelFirstd. In a CacheDataset or PersistentDataset each subject is registered
    once: nothing here is random.

    Convention:
        Images are MetaTensors (c, *s) in 2-D or 3-D whose affines lead to one RAS+ world, as LoadImaged gives them;
        their grids may differ. What comes out:

        * data["moving"]: the moving image on the fixed grid, with the fixed affine, floating point, 0 where the moving
          image does not reach.
        * labels: the nearest label of the moving image at each voxel of the fixed grid, each channel for itself, 0
          beyond. They must come on the moving image's grid.
        * points: (..., d) RAS+ mm of the moving image go to the fixed image, by the inverse map: an image is pulled
          from moving to fixed, so the map itself takes points from fixed to moving. They come back as MetaTensors.
        * data["ddf"]: the map, (d, *fixed), voxels of the fixed grid: warped[p] = moving[p + ddf[p]] in the world. It
          is what `field.warp` takes and, where both images share a grid, MONAI's Warp.

        `inverse` reads images, labels and predictions on the fixed grid at the voxels of the moving grid by the
        inverse map, and gives them the moving image's affine; whole numbers and what comes from `Invertd` with
        `nearest_interp` are read by the nearest voxel. Points go from the fixed to the moving image. The ddf is
        removed. All it needs lies in each item's `applied_operations`, so that batches, workers and `Invertd` find it.

    Args:
        fixed_key, moving_key: of the two images, which must be there.
        label_keys: label maps on the moving grid.   point_keys: points in the moving image.
        registration: called as (fixed, moving, fixed_grid=, moving_grid=) with images (1, c, *s); default
            `register_images`. Use `partial(register_images, settings=Settings(transform="affine"))` or any function
            around `optimize.register`.
        ddf_key: where the map goes.
        allow_missing_keys: pass over labels and points that are not there.

    Raises: KeyError, TypeError, ValueError or GridMismatchError before any work for items that do not fit.

    Example:
        >>> from monai.data import MetaTensor
        >>> from monai.transforms import Compose
        >>> from reglib import phantoms
        >>> from reglib.monai_transforms import Registerd
        >>> pair = phantoms.brain_cohort(2, shape=(48, 56), spacing=4.0).pair()
        >>> affine = pair.fixed_grid.world_from_voxel
        >>> data = {"fixed": MetaTensor(pair.fixed[0], affine=affine), "points": pair.truth.moving_points[0]}
        >>> data |= {"moving": MetaTensor(pair.moving[0], affine=affine)}
        >>> data |= {"label": MetaTensor(pair.moving_labels[0], affine=affine)}
        >>> steps = Compose([Registerd(label_keys="label", point_keys="points")])
        >>> result = steps(data)
        >>> tuple(result["ddf"].shape), tuple(result["label"].shape), tuple(result["points"].shape)
        ((2, 48, 56), (1, 48, 56), (100, 2))
        >>> bool((result["points"] - pair.truth.fixed_points[0]).norm(dim=-1).mean() < 2.0)  # mm
        True
        >>> sorted(steps.inverse(result))
        ['fixed', 'label', 'moving', 'points']
    """

    def __init__(
        self,
        fixed_key: Hashable = "fixed",
        moving_key: Hashable = "moving",
        *,
        label_keys: Hashable | Sequence[Hashable] = (),
        point_keys: Hashable | Sequence[Hashable] = (),
        registration: Callable[..., Registration] = register_images,
        ddf_key: Hashable = "ddf",
        allow_missing_keys: bool = False,
    ) -> None:
        self.label_keys, self.point_keys = _keys(label_keys), _keys(point_keys)
        MapTransform.__init__(self, (moving_key, *self.label_keys, *self.point_keys), allow_missing_keys)
        self.fixed_key, self.moving_key, self.ddf_key = fixed_key, moving_key, ddf_key
        self.registration = registration
        named = [fixed_key, *self.keys, ddf_key]
        twice = sorted({str(key) for key in named if named.count(key) > 1})
        if twice:
            raise ValueError(f"every key must serve one purpose; {', '.join(twice)} is named more than once.")

    # -- to the fixed image --------------------------------------------------------------------------------------
    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        fixed, moving = (_image(d, key) for key in (self.fixed_key, self.moving_key))
        grids: field.Grids = {
            "fixed_grid": _grid(self.fixed_key, fixed),
            "moving_grid": _grid(self.moving_key, moving),
        }
        if fixed.ndim != moving.ndim:
            raise ValueError(
                f"fixed and moving must have one dimension; data[{self.fixed_key!r}] is {fixed.ndim - 1}-D and "
                f"data[{self.moving_key!r}] is {moving.ndim - 1}-D. Take a slice of the larger one first."
            )
        present = list(self.key_iterator(d))
        self._check_companions(d, present, grids["moving_grid"])
        result = self._register(fixed, moving, grids)
        with torch.no_grad():
            back = result.transform.inverse()
            maps = {"ddf": result.ddf, "inverse_ddf": back.ddf(grids["moving_grid"]) if self.tracing else None}
            for key in present:
                if key in self.point_keys:
                    d[key] = self._points_forth(d[key], back, result.ddf, fixed.affine)
                else:
                    d[key] = self._image_forth(d[key], key, maps, fixed.affine, grids)
        d[self.ddf_key] = MetaTensor(result.ddf[0].detach(), meta=dict(fixed.meta))
        return d

    def _check_companions(self, d: Mapping[Hashable, Any], present: Sequence[Hashable], moving_grid: Grid) -> None:
        for key in present:
            if key in self.label_keys:
                grid = _grid(key, _labels(d, key))
                if grid != moving_grid:
                    raise GridMismatchError(
                        f"data[{key!r}] must be on the moving image's grid {moving_grid}; it is on {grid}. "
                        "Is it the label map of another image?"
                    )
            elif key in self.point_keys:
                _check_points(key, d[key], moving_grid.dim)

    def _register(self, fixed: MetaTensor, moving: MetaTensor, grids: field.Grids) -> Registration:
        """The registration, for which a pipeline may have switched gradients off."""
        images = [_floating(each.as_tensor())[None].detach() for each in (fixed, moving)]
        with torch.enable_grad():
            result = self.registration(*images, **grids)
        if not isinstance(result, Registration):
            raise TypeError(f"registration must return an optimize.Registration; got {type(result).__name__}.")
        require_on_grid(result.ddf, grids["fixed_grid"], "the registration's ddf")
        return result

    def _image_forth(
        self, image: MetaTensor, key: Hashable, maps: Mapping[str, Any], affine: Tensor, grids: field.Grids
    ) -> MetaTensor:
        mode = "nearest" if key in self.label_keys else "bilinear"
        warped = _warp(image.as_tensor(), maps["ddf"], mode, grids)
        extra = {"mode": mode, "inverse_ddf": maps["inverse_ddf"], "affine": image.affine.clone()}
        extra |= {"fixed_affine": affine.clone(), "fixed_shape": grids["fixed_grid"].shape}
        return self._tracked(warped, image, extra, affine)

    def _points_forth(self, points: Any, back: Any, ddf: Tensor, affine: Tensor) -> MetaTensor:
        given = points if isinstance(points, MetaTensor) else MetaTensor(points)
        moved = back.points(_listed(given, ddf.device))
        extra = {"ddf": ddf, "fixed_affine": affine.clone()}
        return self._tracked(_as_given(moved, given), given, extra, given.affine)

    def _tracked(self, values: Tensor, like: MetaTensor, extra: dict[str, Any], affine: Tensor) -> MetaTensor:
        """Values with the metadata of what they were made from, the step that made them, and an affine."""
        noted = MetaTensor(like.as_tensor()).copy_meta_from(like)
        self.push_transform(noted, extra_info=extra)
        result = MetaTensor(values).copy_meta_from(noted)
        result.affine = affine
        return result

    # -- and back ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            item = d[key]
            if not isinstance(item, MetaTensor):
                raise TypeError(f"data[{key!r}] must be the MetaTensor that came out; got {type(item).__name__}.")
            item = MetaTensor(item.as_tensor()).copy_meta_from(item)
            extra = self.pop_transform(item)[TraceKeys.EXTRA_INFO]
            back = self._points_back if key in self.point_keys else self._image_back
            d[key] = back(key, item, extra)
        d.pop(self.ddf_key, None)
        return d

    def _image_back(self, key: Hashable, image: MetaTensor, extra: Mapping[str, Any]) -> MetaTensor:
        shape, inverse = tuple(extra["fixed_shape"]), extra["inverse_ddf"]
        if tuple(image.shape[1:]) != shape:
            raise GridMismatchError(
                f"data[{key!r}] must be (c, {', '.join(map(str, shape))}), on the fixed grid, to go back; got "
                f"{tuple(image.shape)}. Invert first what came after the registration."
            )
        grids: field.Grids = {  # the way back pulls from the fixed to the moving grid
            "moving_grid": _grid_of(shape, extra["fixed_affine"]),
            "fixed_grid": _grid_of(inverse.shape[2:], extra["affine"]),
        }
        mode = extra["mode"] if image.is_floating_point() else "nearest"
        result = MetaTensor(_warp(image.as_tensor(), inverse, mode, grids)).copy_meta_from(image)
        result.affine = extra["affine"]
        return result

    def _points_back(self, key: Hashable, points: MetaTensor, extra: Mapping[str, Any]) -> MetaTensor:
        ddf = extra["ddf"].double()
        _check_points(key, points, ddf.shape[1])
        grid = _grid_of(ddf.shape[2:], extra["fixed_affine"])
        voxels = grid.points(_listed(points, ddf.device), to=Axes.VOXEL, from_=Axes.WORLD)
        moved = grid.points(field.warp_points(voxels, ddf), to=Axes.WORLD, from_=Axes.VOXEL)
        return MetaTensor(_as_given(moved, points)).copy_meta_from(points)


def _keys(keys: Any) -> tuple[Hashable, ...]:
    """One key or several, as several."""
    return tuple(keys) if isinstance(keys, list | tuple) else (keys,)


# -- images -----------------------------------------------------------------------------------------------------
def _image(d: Mapping[Hashable, Any], key: Hashable) -> MetaTensor:
    """An image that can be registered, or one sentence about why not."""
    if key not in d:
        raise KeyError(f"data must have {key!r} to register; it has {', '.join(map(repr, d))}.")
    image = _labels(d, key)
    if not bool(image.as_tensor().isfinite().all()):
        raise ValueError(f"data[{key!r}] must be finite; it holds NaN or infinity. Replace them, for example by 0.")
    if bool(image.as_tensor().amin() == image.as_tensor().amax()):
        raise ValueError(f"data[{key!r}] is constant; there is nothing to align. Is it the right image?")
    return image


def _labels(d: Mapping[Hashable, Any], key: Hashable) -> MetaTensor:
    """A MetaTensor (c, *s) with its affine up to date, or one sentence."""
    image = d[key]
    if not isinstance(image, MetaTensor):
        raise TypeError(
            f"data[{key!r}] must be a MetaTensor, which knows where its voxels are; got {type(image).__name__}. "
            "Load it with LoadImaged, or give MetaTensor(array, affine=...)."
        )
    if image.is_batch or image.ndim not in (3, 4):
        raise ValueError(
            f"data[{key!r}] must be one image (c, *s) in 2-D or 3-D; got {tuple(image.shape)}. Add the channel by "
            "EnsureChannelFirstd; take batches apart by decollate_batch."
        )
    if image.pending_operations:
        raise ValueError(
            f"data[{key!r}] has lazy operations pending; put both into one Compose, or apply them by ApplyPendingd."
        )
    return image


def _grid(key: Hashable, image: MetaTensor) -> Grid:
    """Where an image's voxels are; its world must be RAS."""
    if image.meta.get(MetaKeys.SPACE) == SpaceKeys.LPS:
        raise ValueError(f"data[{key!r}] has an LPS affine; load it with affine_lps_to_ras=True.")
    try:
        return _grid_of(image.shape[1:], image.affine)
    except ValueError as error:
        raise ValueError(f"data[{key!r}] has an affine that cannot be used: {error}") from error


def _grid_of(shape: Sequence[int], affine: Tensor) -> Grid:
    """A grid of a MONAI affine, which may be 4x4 for a 2-D image too."""
    if len(shape) == 2 and len(affine) == 4:
        leaves = float(affine[2, :2].abs().max())
        if leaves > IN_PLANE * float(affine[:2, :2].abs().max()):
            raise ValueError(
                "a 2-D image must lie in the world's x-y plane; give it an affine that does, such as "
                "torch.diag(torch.tensor([*spacing, 1.0]))."
            )
    return Grid(shape, to_affine_nd(len(shape), affine))


def _warp(image: Tensor, ddf: Tensor, mode: str, grids: field.Grids) -> Tensor:
    """(c, *s) under a ddf (1, d, *t); "nearest" keeps the dtype, labels of any kind."""
    ddf = ddf.to(image.device)
    if mode != "nearest":
        return field.warp(_floating(image)[None], ddf, padding="zeros", **grids)[0]
    channels = image[:, None]  # (c, 1, *s)
    return torch.cat([field.warp_labels(one[None], ddf, method="nearest", **grids)[0] for one in channels])


def _floating(image: Tensor) -> Tensor:
    return image if image.is_floating_point() else image.float()


# -- points -----------------------------------------------------------------------------------------------------
def _check_points(key: Hashable, points: Any, dim: int) -> None:
    if not hasattr(points, "shape") or len(points.shape) < 2 or points.shape[-1] != dim:
        got = tuple(points.shape) if hasattr(points, "shape") else type(points).__name__
        raise ValueError(f"data[{key!r}] must be points (k, {dim}) in RAS+ mm for {dim}-D images; got {got}.")
    if not bool(torch.as_tensor(points).isfinite().all()):
        raise ValueError(f"data[{key!r}] must be finite points; one holds NaN or infinity.")


def _listed(points: MetaTensor, device: torch.device) -> Tensor:
    """(1, n, d) float64."""
    return points.as_tensor().to(device, torch.float64).reshape(1, -1, points.shape[-1])


def _as_given(points: Tensor, like: MetaTensor) -> Tensor:
    """Shape, dtype and device as they came; whole numbers become float32."""
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return points.reshape(like.shape).to(like.device, dtype)
