"""`Registerd` in MONAI pipelines: known maps, brains with truth, the way back, batches, predictions and bad input."""

import doctest
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SHAPES, affine, apply, largest, oblique, quiet, rotation, sentence, smooth_image, voxels
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, PersistentDataset, decollate_batch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Flipd,
    Invertd,
    Lambdad,
    LoadImaged,
    Orientationd,
    ScaleIntensityd,
    SpatialPadd,
)

from reglib import field, io, monai_transforms, phantoms, transforms
from reglib.grid import Grid, GridMismatchError
from reglib.monai_transforms import Registerd, register_images
from reglib.optimize import Registration
from reglib.pipeline import Settings, load_case, register_pair

DIMS = (2, 3)
FIXED_SHAPES = {2: (14, 27), 3: (12, 14, 18)}
SHIFTS = {2: (3, -2), 3: (2, -1, 1)}  # voxels


def known(fixed, moving, *, fixed_grid, moving_grid, matrix):
    """A registration that finds a given world matrix `moving_from_fixed`."""
    model = transforms.Affine(fixed_grid, matrix=torch.as_tensor(matrix))
    with torch.no_grad():
        ddf = model.ddf()
        return Registration(model, ddf, field.warp(moving, ddf, fixed_grid=fixed_grid, moving_grid=moving_grid))


def shift_of(dim):
    """The world matrix that moves by a whole number of voxels of the oblique grid."""
    return affine(np.eye(dim), oblique(dim)[:dim, :dim] @ np.array(SHIFTS[dim], float))


def subject(dim, *, seed=0, points=True):
    """Two images, labels and points; on one oblique grid, so that a shift by voxels is exact."""
    shape, matrix = SHAPES[dim], oblique(dim)
    rng = np.random.default_rng(seed)
    data = {
        name: MetaTensor(smooth_image(shape, seed=seed + k)[0], affine=matrix)
        for k, name in enumerate(("fixed", "moving"))
    }
    data["label"] = MetaTensor(torch.from_numpy(rng.integers(0, 4, (1, *shape))), affine=matrix)
    if points:
        data["points"] = torch.from_numpy(apply(matrix, rng.uniform(0, 5, (7, dim))))
    return data


def step(dim, matrix=None, **options):
    matrix = shift_of(dim) if matrix is None else matrix
    options = {"label_keys": "label", "point_keys": "points"} | options
    return Registerd(registration=partial(known, matrix=matrix), **options)


def shifted(image, shift):
    """out[p] = image[p + shift], 0 where that is outside."""
    out = torch.zeros_like(image)
    target, source = [slice(None)], [slice(None)]
    for s in shift:
        target.append(slice(max(-s, 0), -s if s > 0 else None))
        source.append(slice(max(s, 0), s if s < 0 else None))
    out[tuple(target)] = image[tuple(source)]
    return out


# -- known maps ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", DIMS)
def test_a_shift_moves_image_labels_and_points_by_whole_voxels(dim):
    data = subject(dim)
    result = step(dim)(data)
    moving, label = data["moving"].as_tensor(), data["label"].as_tensor()
    torch.testing.assert_close(result["moving"].as_tensor(), shifted(moving, SHIFTS[dim]), atol=1e-4, rtol=0)
    assert torch.equal(result["label"].as_tensor(), shifted(label, SHIFTS[dim]))
    assert result["label"].dtype == torch.int64
    move = torch.from_numpy(
        shift_of(dim)[:dim, dim]
    )  # fixed to moving: the points of the moving image go the other way
    torch.testing.assert_close(result["points"].as_tensor(), data["points"] - move, atol=1e-4, rtol=0)
    expected = torch.tensor(SHIFTS[dim]).float().reshape(dim, *[1] * dim).expand_as(result["ddf"])
    torch.testing.assert_close(result["ddf"].as_tensor(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dim", DIMS)
def test_the_way_back_restores_all_but_what_was_out_of_sight(dim):
    data = subject(dim)
    transform = step(dim)
    back = transform.inverse(transform(data))
    assert back.keys() == data.keys()
    cut = shifted(shifted(data["moving"].as_tensor(), SHIFTS[dim]), [-s for s in SHIFTS[dim]])
    torch.testing.assert_close(back["moving"].as_tensor(), cut, atol=1e-4, rtol=0)
    cut = shifted(shifted(data["label"].as_tensor(), SHIFTS[dim]), [-s for s in SHIFTS[dim]])
    assert torch.equal(back["label"].as_tensor(), cut)
    torch.testing.assert_close(back["points"].as_tensor(), data["points"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dim", DIMS)
def test_other_grids_meet_in_the_world(dim):
    """A turn between grids that share neither shape, spacing nor direction; a linear function is read exactly."""
    moving_grid = Grid(SHAPES[dim], oblique(dim))
    center, slope = np.array(moving_grid.center), np.array([0.3, -0.2, 0.5][:dim])
    turned = rotation({2: -11.0, 3: (5.0, 15.0, -8.0)}[dim])
    fixed_grid = Grid.centered(FIXED_SHAPES[dim], 1.3, center=center.tolist(), direction=turned)
    linear = rotation({2: 4.0, 3: (2.0, -3.0, 4.0)}[dim])
    turn = affine(linear, center - linear @ center + np.array([0.4, -0.3, 0.2][:dim]))

    def ramp(world):
        return torch.from_numpy((world - center) @ slope)[None].float()

    data = {
        "fixed": MetaTensor(smooth_image(FIXED_SHAPES[dim])[0], affine=fixed_grid.world_from_voxel),
        "moving": MetaTensor(ramp(apply(oblique(dim), voxels(SHAPES[dim]))), affine=oblique(dim)),
    }
    transform = step(dim, turn, label_keys=(), point_keys=())
    result = transform(data)
    world = apply(turn, apply(fixed_grid.world_from_voxel, voxels(FIXED_SHAPES[dim])))
    seen = within(apply(np.linalg.inv(oblique(dim)), world), SHAPES[dim])
    assert seen.sum() > 200 // dim
    assert largest(result["moving"].as_tensor()[0][seen], ramp(world)[0][seen]) < 1e-4
    for key in ("moving", "ddf"):
        assert result[key].shape[1:] == result["fixed"].shape[1:]
        assert torch.equal(result[key].affine, data["fixed"].affine)
    back = transform.inverse(result)["moving"]
    assert back.shape == data["moving"].shape
    assert torch.equal(back.affine, data["moving"].affine)
    world = apply(np.linalg.inv(turn), apply(oblique(dim), voxels(SHAPES[dim])))
    target = apply(fixed_grid.voxel_from_world, world)
    seen = within(target, FIXED_SHAPES[dim]) & within(voxels(SHAPES[dim]), SHAPES[dim], margin=2)
    assert seen.sum() > 50  # nearer the border it mixes with what was out of sight
    assert largest(back.as_tensor()[0][seen], data["moving"].as_tensor()[0][seen]) < 2e-3


def within(target, shape, margin=0):
    """Where voxel positions (*s, d) are inside an image of this shape."""
    return torch.from_numpy(np.all((target >= margin) & (target <= np.array(shape) - 1 - margin), axis=-1))


def test_points_keep_shape_dtype_and_kind_of_several_layouts():
    data = subject(2)
    transform = step(2)
    flat = transform(data)["points"].as_tensor()
    for given in (data["points"][None], data["points"].numpy(), MetaTensor(data["points"].float())):
        result = transform(data | {"points": given})["points"]
        assert isinstance(result, MetaTensor)
        assert result.shape == given.shape
        assert result.dtype == (torch.float32 if isinstance(given, MetaTensor) else torch.float64)
        torch.testing.assert_close(result.as_tensor().reshape(-1, 2).double(), flat, atol=1e-4, rtol=0)


def test_every_channel_of_one_hot_labels_is_taken_along():
    data = subject(3)
    one_hot = torch.cat([data["label"].as_tensor() == k for k in range(1, 4)])
    result = step(3)(data | {"label": MetaTensor(one_hot, affine=oblique(3))})
    assert result["label"].dtype == torch.bool
    assert torch.equal(result["label"].as_tensor(), shifted(one_hot, SHIFTS[3]))


def test_whole_number_images_are_registered_and_come_back_as_floats():
    data = subject(2)
    counts = ((data["moving"].as_tensor() + 4) * 30).to(torch.uint8)
    result = step(2)(data | {"moving": MetaTensor(counts, affine=oblique(2))})
    assert result["moving"].dtype == torch.float32
    torch.testing.assert_close(result["moving"].as_tensor(), shifted(counts, SHIFTS[2]).float(), atol=0.02, rtol=0)


def test_the_input_stays_as_it_was():
    data = subject(3)
    before = {key: value.clone() for key, value in data.items()}
    transform = step(3)
    result = transform(data)
    kept = {key: value.clone() for key, value in result.items()}
    transform.inverse(result)
    assert data.keys() == before.keys()
    for old, now in ((before, data), (kept, result)):
        assert all(torch.equal(torch.as_tensor(old[key]), torch.as_tensor(now[key])) for key in old)
    assert data["moving"].applied_operations == []
    torch.testing.assert_close(data["moving"].affine, torch.from_numpy(oblique(3)), atol=0, rtol=0)
    assert len(result["moving"].applied_operations) == 1


# -- brains with truth ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=[(2, (60, 72), 3.0), (3, (34, 40, 32), 5.5)], ids=["2-D", "3-D"])
def brains(request, tmp_path_factory):
    """Brains on grids of their own as NIfTI files, loaded by MONAI and registered by default; with the truth."""
    dim, shape, spacing = request.param
    folder = tmp_path_factory.mktemp(f"brains{dim}")
    pair = phantoms.brain_cohort(2, seed=3, shape=shape, spacing=spacing, oblique=True).pair()
    io.save_image(folder / "fixed.nii.gz", pair.fixed, pair.fixed_grid)
    io.save_image(folder / "moving.nii.gz", pair.moving, pair.moving_grid)
    io.save_labels(folder / "label.nii.gz", pair.moving_labels, pair.moving_grid)
    images = ["fixed", "moving", "label"]
    data = {name: str(folder / f"{name}.nii.gz") for name in images} | {"points": pair.truth.moving_points[0]}
    load = [LoadImaged(images), EnsureChannelFirstd(images)]
    if dim == 2:  # a slice of a file (X, Y, 1)
        load.append(Lambdad(images, lambda image: image[..., 0] if image.ndim == 4 else image))
    loaded = quiet(Compose(load), data)
    transform = Registerd(label_keys="label", point_keys=["points"])
    return pair, loaded, transform, transform(loaded)


def test_brains_land_on_each_other(brains):
    pair, _, _, result = brains
    start = (pair.truth.moving_points - pair.truth.fixed_points)[0].norm(dim=-1)
    end = (result["points"].as_tensor() - pair.truth.fixed_points[0]).norm(dim=-1)
    assert start.mean() > 4  # mm
    assert end.mean() < 0.55 * start.mean()
    labels, fixed = result["label"].as_tensor().long(), pair.fixed_labels[0]
    before = field.resample(pair.moving_labels.double(), pair.moving_grid, pair.fixed_grid, mode="nearest")[0]
    assert (labels == fixed).float().mean() > (before == fixed).float().mean() + 0.02
    white = [
        float((2 * ((x == 3) & (fixed == 3)).sum()) / ((x == 3).sum() + (fixed == 3).sum())) for x in (before, labels)
    ]
    assert white[1] > white[0] + 0.1


def test_it_finds_what_the_command_line_finds(brains):
    """From the same files, so that not a bit differs: the descent magnifies rounding."""
    _, loaded, _, result = brains
    files = [Path(loaded[key].meta["filename_or_obj"]) for key in ("fixed", "moving")]
    found = register_pair(load_case(*files), Settings(quality="fast", progress=False))
    torch.testing.assert_close(result["ddf"].as_tensor(), found.ddf[0])
    unit = found.warped[0] * loaded["moving"].as_tensor().max()  # the command scales images to [0, 1]
    torch.testing.assert_close(result["moving"].as_tensor(), unit, atol=1e-5, rtol=0)


def test_brains_come_back(brains):
    pair, loaded, transform, result = brains
    back = transform.inverse(result)
    assert back["moving"].shape == loaded["moving"].shape
    assert torch.equal(back["moving"].affine, loaded["moving"].affine)
    brain = pair.moving_labels[0] > 0
    there = (back["label"].as_tensor() == loaded["label"].as_tensor())[brain].float().mean()
    assert there > 0.8  # what two nearest readings leave
    off = (back["points"].as_tensor() - pair.truth.moving_points[0]).norm(dim=-1)
    assert off.mean() < 0.1 * min(pair.moving_grid.spacing)
    off = (back["moving"].as_tensor() - loaded["moving"].as_tensor()).abs()[brain].mean()
    assert off < 0.06


def test_settings_choose_another_registration():
    pair = phantoms.brain_cohort(2, seed=3, shape=(48, 56), spacing=4.0).pair()
    images = {
        "fixed": MetaTensor(pair.fixed[0], affine=pair.fixed_grid.world_from_voxel),
        "moving": MetaTensor(pair.moving[0], affine=pair.moving_grid.world_from_voxel),
    }
    rigid = partial(register_images, settings=Settings(transform="rigid", progress=False))
    with torch.no_grad():  # as an evaluator may have it
        ddf = Registerd(registration=rigid)(images)["ddf"].as_tensor()[None]
    determinant = field.jacobian_determinant(ddf)
    torch.testing.assert_close(determinant, torch.ones_like(determinant), atol=1e-3, rtol=0)
    assert ddf.abs().max() > 0.5


# -- in pipelines ---------------------------------------------------------------------------------------------------
def pipeline(dim):
    """Steps before and after that change shape, direction and values, all invertible."""
    both = ["moving", "label"]
    return Compose(
        [
            Orientationd(both, axcodes="RAS"[:dim], labels=(("L", "R"), ("P", "A"), ("I", "S"))[:dim]),
            step(dim, np.eye(dim + 1)),
            SpatialPadd(both, spatial_size=[n + 4 for n in SHAPES[dim]]),
            Flipd(both, spatial_axis=0),
        ]
    )


@pytest.mark.parametrize("dim", DIMS)
def test_compose_inverts_what_comes_before_and_after(dim):
    data = subject(dim)
    steps = pipeline(dim)
    result = quiet(steps, data)
    assert tuple(result["moving"].shape[1:]) == tuple(n + 4 for n in SHAPES[dim])
    back = quiet(steps.inverse, result)
    for key in ("moving", "label"):
        torch.testing.assert_close(back[key].as_tensor(), data[key].as_tensor(), atol=2e-4, rtol=0)
        torch.testing.assert_close(back[key].affine, data[key].affine, atol=1e-9, rtol=0)
        assert back[key].applied_operations == []


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_taken_apart_and_inverted_each_with_its_own_map(workers):
    """The subjects' moving images have shapes of their own, which only each item's trace can know."""
    subjects = [subject(3, seed=5), subject(3, seed=9)]
    matrix = oblique(3, spacing=(1.1, 1.0, 2.0))
    other = smooth_image((11, 8, 10), seed=3)[0]
    subjects[1] |= {name: MetaTensor(other.clone(), affine=matrix) for name in ("moving", "label")}
    subjects[1]["label"] = MetaTensor((other > 0).long(), affine=matrix)
    steps = Compose([step(3)])
    loader = DataLoader(Dataset(subjects, steps), batch_size=2, num_workers=workers)
    (batch,) = quiet(list, loader)
    assert batch["moving"].shape == (2, 1, *SHAPES[3])
    backs = [steps.inverse(item) for item in decollate_batch(batch)]
    for data, back in zip(subjects, backs, strict=True):
        alone = steps.inverse(steps(data))
        for key in ("moving", "label", "points"):
            assert back[key].shape == data[key].shape
            torch.testing.assert_close(torch.as_tensor(back[key]), torch.as_tensor(alone[key]))
        torch.testing.assert_close(back["moving"].affine, data["moving"].affine, atol=0, rtol=0)


def test_one_transform_serves_many_subjects_in_any_order():
    transform = step(2)
    first, second = subject(2, seed=1), subject(2, seed=2)
    results = [transform(first), transform(second)]
    for data, result in ((second, results[1]), (first, results[0])):
        torch.testing.assert_close(transform.inverse(result)["points"].as_tensor(), data["points"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("nearest", [True, False])
def test_predictions_go_back_to_the_moving_grid(nearest):
    """Invertd hands over a prediction alone, with the trace of the moving image."""
    dim = 3
    data = subject(dim, points=False)
    steps = Compose([step(dim, allow_missing_keys=True), ScaleIntensityd("moving")])
    result = steps(data)
    kind = torch.long if nearest else torch.float32
    result["pred"] = MetaTensor((result["moving"].as_tensor() > 0.5).to(kind))
    invert = Invertd("pred", transform=steps, orig_keys="moving", nearest_interp=nearest, to_tensor=True)
    back = quiet(invert, result)["pred"]
    assert back.shape == data["moving"].shape
    torch.testing.assert_close(back.affine, data["moving"].affine, atol=0, rtol=0)
    expected = shifted(result["pred"].as_tensor(), [-s for s in SHIFTS[dim]])
    torch.testing.assert_close(back.as_tensor(), expected, atol=1e-4, rtol=0)
    assert back.dtype == kind


def test_whole_number_predictions_are_never_blended():
    data = subject(2, points=False)
    half = affine(np.eye(2), oblique(2)[:2, :2] @ [0.4, 0.3])
    transform = step(2, half, allow_missing_keys=True)
    result = transform(data)
    result["moving"] = MetaTensor(result["label"].as_tensor() * 10).copy_meta_from(result["moving"])
    back = transform.inverse(result)["moving"]
    assert set(back.unique().tolist()) <= {0, 10, 20, 30}


def test_datasets_cache_it_and_it_can_be_pickled(tmp_path):
    data = subject(2)
    calls = []

    def counted(*images, **grids):
        calls.append(1)
        return known(*images, **grids, matrix=shift_of(2))

    cached = CacheDataset([data], Compose([Registerd(registration=counted)]), progress=False)
    assert [cached[0]["moving"].shape for _ in range(3)] == [data["moving"].shape] * 3
    assert len(calls) == 1
    stored = PersistentDataset([data], Compose([step(2)]), cache_dir=tmp_path)
    first, second = quiet(lambda: (stored[0], stored[0]))
    torch.testing.assert_close(torch.as_tensor(first["moving"]), torch.as_tensor(second["moving"]))
    twin = pickle.loads(pickle.dumps(step(2)))
    torch.testing.assert_close(twin(data)["ddf"].as_tensor(), first["ddf"].as_tensor())


def test_without_tracing_nothing_is_kept():
    transform = step(2)
    with transform.trace_transform(False):
        result = transform(subject(2))
    assert result["moving"].applied_operations == []


# -- what is missing or wrong ---------------------------------------------------------------------------------------
def test_labels_and_points_may_be_missing_if_allowed():
    data = {key: value for key, value in subject(2).items() if key in ("fixed", "moving")}
    transform = step(2, allow_missing_keys=True)
    result = transform(data)
    assert sorted(result) == ["ddf", "fixed", "moving"]
    assert sorted(transform.inverse(result)) == ["fixed", "moving"]
    with pytest.raises(KeyError, match="label"):
        step(2)(data)
    data.pop("fixed")
    with pytest.raises(KeyError, match="'fixed' to register; it has 'moving'"):
        transform(data)


def image(shape=SHAPES[2], matrix=None, **meta):
    return MetaTensor(smooth_image(shape)[0], affine=oblique(len(shape)) if matrix is None else matrix, meta=meta)


def lazy():
    found = image()
    found.push_pending_operation({"lazy": True})
    return found


def batch():
    found = MetaTensor(torch.rand(2, 1, *SHAPES[2]))
    found.is_batch = True
    return found


SAGITTAL = np.array([[0, 0, 1, 5.0], [2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
WRONG = {
    "array": ({"moving": np.zeros((1, 16, 13))}, TypeError, "data['moving'] must be a MetaTensor", "ndarray"),
    "tensor": ({"fixed": torch.rand(1, 16, 13)}, TypeError, "data['fixed'] must be a MetaTensor", "LoadImaged"),
    "no channel": ({"moving": MetaTensor(torch.rand(16, 13))}, ValueError, "(c, *s)", "EnsureChannelFirstd"),
    "batch": ({"moving": batch()}, ValueError, "one image (c, *s)", "decollate_batch"),
    "lazy": ({"moving": lazy()}, ValueError, "pending"),
    "NaN": ({"moving": image() * float("nan")}, ValueError, "data['moving'] must be finite"),
    "constant": ({"fixed": image() * 0 + 3}, ValueError, "data['fixed'] is constant"),
    "LPS": ({"fixed": image(space="LPS")}, ValueError, "data['fixed']", "LPS", "affine_lps_to_ras"),
    "affine": ({"fixed": image(matrix=np.diag([1.0, 0, 1]))}, ValueError, "data['fixed']", "invertible"),
    "sagittal": ({"fixed": image(matrix=SAGITTAL)}, ValueError, "data['fixed']", "x-y plane"),
    "dimension": ({"moving": image(SHAPES[3])}, ValueError, "2-D", "3-D"),
    "label grid": ({"label": image(matrix=np.diag([2.0, 2, 1]))}, GridMismatchError, "data['label']", "moving"),
    "label kind": ({"label": torch.zeros(1, 16, 13)}, TypeError, "data['label']"),
    "points": ({"points": torch.zeros(4, 3)}, ValueError, "data['points']", "(k, 2)", "(4, 3)"),
    "no points": ({"points": [[1, 2]]}, ValueError, "data['points']", "list"),
    "points NaN": ({"points": torch.full((4, 2), float("nan"))}, ValueError, "finite points"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_said_before_any_work(case, no_jaxtyping):
    changed, error, *words = WRONG[case]

    def never(*images, **grids):
        raise AssertionError("it was registered")

    transform = Registerd(label_keys="label", point_keys="points", registration=never)
    with sentence(error, *words):
        transform(subject(2) | changed)


def test_a_registration_must_return_one_on_the_fixed_grid(no_jaxtyping):
    data = subject(2)
    with sentence(TypeError, "registration must return", "Tensor"):
        Registerd(registration=lambda fixed, moving, **grids: moving)(data)

    def elsewhere(fixed, moving, *, fixed_grid, moving_grid):
        return known(fixed, moving, fixed_grid=Grid((5, 6)), moving_grid=moving_grid, matrix=np.eye(3))

    with sentence(GridMismatchError, "the registration's ddf", "(1, 2, 5, 6)"):
        Registerd(registration=elsewhere)(data)


def test_channels_must_agree_for_the_default(no_jaxtyping):
    data = subject(2) | {"moving": MetaTensor(torch.rand(2, *SHAPES[2]), affine=oblique(2))}
    with sentence(ValueError, "as many channels", "1 and 2"):
        Registerd()(data)


@pytest.mark.parametrize("keys", [{"label_keys": "moving"}, {"ddf_key": "fixed"}, {"point_keys": ["a", "a"]}])
def test_a_key_serves_one_purpose(keys):
    with sentence(ValueError, "more than once"):
        Registerd(**keys)


def test_only_what_is_on_the_fixed_grid_goes_back():
    transform = step(2)
    result = transform(subject(2))
    wrong = MetaTensor(torch.rand(1, 5, 6)).copy_meta_from(result["moving"])
    with sentence(GridMismatchError, "data['moving']", "(c, 16, 13)", "(1, 5, 6)"):
        transform.inverse(result | {"moving": wrong})
    with sentence(TypeError, "data['label']", "ndarray"):
        transform.inverse(result | {"label": result["label"].numpy()})


def test_the_docstring_tells_the_truth():
    assert doctest.testmod(monai_transforms).failed == 0
    assert doctest.testmod(monai_transforms).attempted > 10
