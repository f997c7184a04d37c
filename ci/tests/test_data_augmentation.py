"""Pairs bent at random: image, label, points and truth must go to one place."""

import folders
import numpy as np
import pytest
import torch
from helpers import SHAPES, affine, largest, oblique, rotation, sentence, smooth_image
from scipy.ndimage import center_of_mass, map_coordinates

from reglib import data, field
from reglib.data.augmentation import ROLES, corner_matrix
from reglib.grid import Grid, apply_affine

GRIDS = {d: Grid([4 * n for n in SHAPES[d]], oblique(d)) for d in (2, 3)}
EVERYTHING = data.Augmentation(
    corners=0.05, angle_deg=6, scale=0.05, shift_mm=2, field_mm=2, bias=0.2, gamma=0.3, noise=0.02, invert=0.5
)
GEOMETRY = data.Augmentation(corners=0.05, angle_deg=6, scale=0.05, shift_mm=2, field_mm=2)


def an_item(dim, *, moving_grid=None, points=None):
    """One scene seen on two grids: a function of the world, with points that both have."""
    fixed_grid = GRIDS[dim]
    moving_grid = moving_grid or fixed_grid
    item = {"label_index": -1, "fixed_grid": fixed_grid, "moving_grid": moving_grid}
    scene = smooth_image(fixed_grid.shape, seed=dim, sigma=4).sub_(-3).div_(6).clamp_(0.05, 0.95)
    for role in ROLES:
        image = field.resample(scene, fixed_grid, item[f"{role}_grid"], mode="cubic", padding="border")[0]
        item |= {role: image, f"{role}_label": (image > 0.5).float(), f"{role}_name": "case"}
        if points is not None:
            item[f"{role}_points"] = points
    return item


def other_grid(dim):
    """Another grid over the same place."""
    grid = GRIDS[dim]
    turn = affine(rotation({2: (11.0,), 3: (5.0, -4.0, 8.0)}[dim]), [0.0] * dim)
    center = affine(np.eye(dim), grid.center)
    spacing = np.diag([*[1.15, 0.9, 1.1][:dim], 1.0])
    matrix = center @ turn @ np.linalg.inv(center) @ grid.world_from_voxel.numpy() @ spacing
    return Grid([n - 3 + k for k, n in enumerate(grid.shape)], matrix)


# -- geometry ----------------------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 3])
def test_image_and_label_are_read_where_the_map_says(dim):
    """Against SciPy."""
    item = an_item(dim)
    changed = GEOMETRY(item, np.random.default_rng(3))
    for role in ROLES:
        at = (
            np.stack(np.meshgrid(*map(np.arange, item[role].shape[1:]), indexing="ij")) + changed[f"{role}_map"].numpy()
        )
        n = np.array(item[role].shape[1:]).reshape(-1, *[1] * dim)
        well = torch.from_numpy(((at > 0) & (at < n - 1)).all(0))
        assert well.float().mean() > 0.6
        expected = map_coordinates(item[role][0].numpy(), at, order=1)
        assert float((changed[role][0] - torch.from_numpy(expected))[well].abs().max()) < 1e-4
        mask = map_coordinates(item[f"{role}_label"][0].numpy(), at, order=0)
        assert float((changed[f"{role}_label"][0] - torch.from_numpy(mask))[well].abs().mean()) < 1e-3
        assert largest(item[role], an_item(dim)[role]) == 0  # the given item is as it was
    assert largest(changed["moving_map"], changed["fixed_map"]) > 1


@pytest.mark.parametrize("dim", [2, 3])
def test_points_go_where_what_is_under_them_goes(dim):
    """The center of mass of a blob that is bent a little is the point that it stood on."""
    grid = GRIDS[dim]
    item = an_item(dim)
    middle = torch.tensor(grid.shape) // 2 + torch.tensor([4, -6, 3][:dim])
    world = grid.points(middle[None].double(), to="world", from_="voxel")
    at = grid.coordinates("voxel")
    item["moving"] = torch.exp(-((at - middle) ** 2).sum(-1) / 2)[None].float()
    item |= {"moving_points": world, "fixed_points": world}
    gentle = data.Augmentation(angle_deg=8, shift_mm=3, field_mm=2, field_points=3)
    for seed in range(4):
        changed = gentle(item, np.random.default_rng(seed))
        found = torch.tensor([center_of_mass(changed["moving"][0].numpy())]).double()
        expected = grid.points(changed["moving_points"], to="voxel", from_="world")
        assert float((found - expected).norm()) < 0.12
        assert float((changed["moving_points"] - world).norm()) > 0.3


@pytest.mark.parametrize("dim", [2, 3])
def test_points_and_map_are_each_others_inverse(dim):
    grid = GRIDS[dim]
    rng = np.random.default_rng(5)
    voxels = torch.from_numpy(rng.uniform(0.3, 0.7, (40, dim)) * (np.array(grid.shape) - 1))
    world = grid.points(voxels, to="world", from_="voxel")
    changed = EVERYTHING(an_item(dim, points=world), rng)
    for role in ROLES:
        new = grid.points(changed[f"{role}_points"], to="voxel", from_="world")[None]
        back = field.warp_points(new, changed[f"{role}_map"][None].double())[0]
        assert float((back - voxels).norm(dim=1).max()) < 0.05  # voxels


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("dim", [2, 3])
def test_the_truth_moves_along(dim, apart):
    """One scene twice: after both are bent, the true map still lays one on the other."""
    item = an_item(dim, moving_grid=other_grid(dim) if apart else None)
    changed = GEOMETRY(item, np.random.default_rng(8))
    grids = {"moving_grid": item["moving_grid"], "fixed_grid": item["fixed_grid"]}
    nothing = torch.zeros(1, dim, *item["fixed_grid"].shape)
    truth = data.true_ddf_after(nothing, changed)
    valid = {role: field.valid_mask(changed[f"{role}_map"][None]).float() for role in ROLES}
    seen = valid["fixed"] * (field.warp(valid["moving"], truth, padding="zeros", **grids) > 0.999)
    assert float(seen.mean()) > 0.5
    left = []
    for ddf in (nothing, truth):
        warped = field.warp(changed["moving"][None], ddf, **grids)
        left.append(float(((warped - changed["fixed"][None]).abs() * seen).mean()))
    assert left[1] < 0.15 * left[0]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("dim", [2, 3])
def test_the_truth_agrees_with_the_points(dim, apart):
    """Points that meet before meet after: the true map takes the fixed ones to the moving ones."""
    grid = GRIDS[dim]
    rng = np.random.default_rng(2)
    voxels = torch.from_numpy(rng.uniform(0.35, 0.65, (30, dim)) * (np.array(grid.shape) - 1))
    item = an_item(
        dim, moving_grid=other_grid(dim) if apart else None, points=grid.points(voxels, to="world", from_="voxel")
    )
    changed = GEOMETRY(item, rng)
    truth = data.true_ddf_after(torch.zeros(1, dim, *grid.shape), changed)
    fixed = grid.points(changed["fixed_points"], to="voxel", from_="world")[None]
    found = grid.points(field.warp_points(fixed, truth.double())[0], to="world", from_="voxel")
    assert float((found - changed["moving_points"]).norm(dim=1).max()) < 0.1  # mm
    assert float((changed["fixed_points"] - changed["moving_points"]).norm(dim=1).mean()) > 1


@pytest.mark.parametrize("dim", [2, 3])
def test_one_map_for_both_is_one_map_of_the_world(dim):
    grid = GRIDS[dim]
    voxels = torch.from_numpy(np.random.default_rng(2).uniform(0.35, 0.65, (30, dim)) * (np.array(grid.shape) - 1))
    points = grid.points(voxels, to="world", from_="voxel")
    item = an_item(dim, moving_grid=other_grid(dim), points=points)
    changed = data.Augmentation(corners=0.1, angle_deg=8, field_mm=2, same=True)(item, np.random.default_rng(1))
    torch.testing.assert_close(changed["fixed_points"], changed["moving_points"], atol=0.05, rtol=0)
    assert float((changed["fixed_points"] - points).norm(dim=1).mean()) > 1


@pytest.mark.parametrize("dim", [2, 3])
def test_corners_are_pulled_to_the_middle_and_never_out(dim):
    rng = np.random.default_rng(0)
    corners = torch.full((dim + 1, dim), -1.0, dtype=torch.float64)
    corners[range(dim), range(dim)] = 1
    pulls = torch.stack([apply_affine(corner_matrix(0.1, rng, dim), corners) / corners for _ in range(300)])
    assert 0.9 <= float(pulls.min()) < 0.902
    assert 0.998 < float(pulls.max()) <= 1 + 1e-12
    assert float(pulls.mean()) == pytest.approx(0.95, abs=0.005)
    torch.testing.assert_close(corner_matrix(0.0, rng, dim), torch.eye(dim + 1, dtype=torch.float64))


def test_sizes_are_kept():
    """A turn, a shift and a field are as large as they may be, and the middle of the image stays for a turn."""
    grid, rng = GRIDS[3], np.random.default_rng(0)
    middle = torch.tensor([grid.center], dtype=torch.float64)
    turns = [data.Augmentation(angle_deg=10).draw_map(grid, rng) for _ in range(30)]
    for found in turns:
        torch.testing.assert_close(apply_affine(found.matrix, middle), middle)
        assert float(torch.linalg.det(found.matrix)) == pytest.approx(1)
    shifts = torch.stack([data.Augmentation(shift_mm=4).draw_map(grid, rng).matrix[:3, 3] for _ in range(200)])
    assert 3.8 < float(shifts.abs().max()) <= 4
    sizes = []
    for _ in range(20):
        smooth = data.Augmentation(field_mm=3).draw_map(grid, rng).smooth
        assert float(field.jacobian_determinant(smooth).min()) > 0
        world = field.convert_ddf(smooth, grid, to="world", from_="voxel")
        sizes.append(float(world.norm(dim=1).mean()))
    assert 1.5 < max(sizes) < 3.3


def test_one_knot_is_one_shift():
    smooth = data.Augmentation(field_mm=3, field_points=1).draw_map(GRIDS[3], np.random.default_rng(1)).smooth
    assert largest(smooth, smooth[..., :1, :1, :1].expand_as(smooth)) < 1e-4
    assert float(smooth.abs().max()) > 0.1


# -- intensities -------------------------------------------------------------------
@pytest.mark.parametrize("what", [{"bias": 0.3}, {"gamma": 0.5}, {"noise": 0.05}, {"invert": 1.0}])
def test_intensities_change_and_stay_in_range(what):
    item = an_item(3)
    changed = data.Augmentation(**what)(item, np.random.default_rng(1))
    for role in ROLES:
        x, y = item[role], changed[role]
        assert 0 <= float(y.min()) < float(y.max()) <= 1
        order = np.corrcoef(x.flatten(), y.flatten())[0, 1]
        expected = {"bias": (0.4, 0.99), "gamma": (0.9, 1), "noise": (0.8, 0.999), "invert": (-1.001, -0.999)}
        low, high = expected[next(iter(what))]
        assert low < order < high
        assert largest(changed[f"{role}_map"], torch.zeros_like(changed[f"{role}_map"])) < 1e-4
    assert float((changed["moving"] - changed["fixed"]).abs().mean()) > 1e-3 or "invert" in what


def test_contrast_is_shared_and_noise_is_not():
    """One map, one contrast; but two scanners."""
    item = an_item(3)
    alike = data.Augmentation(gamma=0.5, invert=0.5, same=True)(item, np.random.default_rng(4))
    torch.testing.assert_close(alike["moving"], alike["fixed"])
    noisy = data.Augmentation(noise=0.05, same=True)(item, np.random.default_rng(4))
    noise = [(noisy[role] - item[role]).flatten() for role in ROLES]
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.05


def test_intensities_that_are_not_scaled_are_refused(no_jaxtyping):
    item = an_item(3)
    item["fixed"] = 300 * item["fixed"]
    assert GEOMETRY(item, np.random.default_rng(0))["fixed"].max() > 100
    with pytest.raises(ValueError, match="intensities") as raised:
        EVERYTHING(item, np.random.default_rng(0))
    sentence(raised, "[0, 1]", "minmax")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"noise": -1.0}, "noise"),
        ({"corners": 1.0}, "corners"),
        ({"invert": 2.0}, "invert"),
        ({"field_points": 0}, "knots"),
    ],
)
def test_sizes_that_make_no_sense(arguments, word):
    with pytest.raises(ValueError, match=word if word != "knots" else "field_points"):
        data.Augmentation(**arguments)


# -- in a data set -----------------------------------------------------------------
def test_a_data_set_bends_each_pair_its_own_way_and_always_the_same(tmp_path):
    found = data.find(folders.paired(tmp_path, 2))
    first, second = (data.PairedDataset(found, augment=EVERYTHING, cache="memory") for _ in range(2))
    for index in ((0, 0), (0, 1), (3, 0)):
        torch.testing.assert_close(first[index]["moving"], second[index]["moving"], rtol=0, atol=0)
    maps = [first[index]["moving_map"] for index in ((0, 0), (0, 1), (3, 0))]
    assert min(largest(maps[i], maps[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.05
    batch = next(iter(data.loader(first, batch_size=2)))
    assert batch["fixed_map"].shape == (2, 3, *folders.GRID.shape)
