"""Networks: any size, the identity before they have learned anything, and what independent formulas say."""

import pickle

import numpy as np
import pytest
import torch
from helpers import affine, largest, oblique, smooth_image
from torch.nn import functional

from reglib import field, losses, networks
from reglib.grid import Grid

SMALL = {
    "voxelmorph": lambda d, **k: networks.voxelmorph(d, encoder=(4, 4), decoder=(4, 4), final=(4,), **k),
    "half": lambda d, **k: networks.voxelmorph(d, encoder=(4, 4), decoder=(4, 4), final=(4,), half=True, **k),
    "displacement": lambda d, **k: networks.voxelmorph(d, encoder=(4,), decoder=(4,), final=(4,), output="ddf", **k),
    "unet": lambda d, **k: networks.unet(d, initial=2, depth=2, **k),
    "unet concat": lambda d, **k: networks.unet(d, initial=2, depth=2, pooling=False, concat_skip=True, **k),
    "unet velocity": lambda d, **k: networks.unet(d, initial=2, depth=1, output="velocity", **k),
    "localnet": lambda d, **k: networks.localnet(d, initial=2, levels=(0, 2), **k),
    "localnet coarse": lambda d, **k: networks.localnet(d, initial=2, levels=(1, 2), **k),
    "splines": lambda d, **k: networks.localnet(d, initial=1, levels=(0, 1), control_points=4, **k),
    "globalnet": lambda d, **k: networks.globalnet(d, initial=2, depth=2, **k),
    "keymorph": lambda d, **k: networks.keymorph(d, initial=4, depth=1, points=3, **k),
    "conditional": lambda d, **k: networks.conditional(d, initial=2, levels=(0, 1, 2), **k),
}
SIZES = {2: [(1, 1), (5, 1), (7, 12), (16, 16)], 3: [(1, 1, 1), (3, 9, 6), (8, 8, 8)]}


def images(*sizes, batch=2, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, channels, *size, generator=generator) for size in sizes]


def ask(name, network, fixed, moving, **more):
    label = {"moving_label": (moving > 0.5).float()} if name == "conditional" else {}
    return network(fixed, moving, **label, **more)


# -- what every one of them keeps -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("d", "size"), [(d, size) for d, sizes in SIZES.items() for size in sizes])
def test_any_size_and_the_identity_at_first(name, d, size):
    torch.manual_seed(0)
    network = SMALL[name](d)
    other = tuple(n + 3 for n in size)
    for moving_size in (size, other):
        fixed, moving = images(size, moving_size)
        found = ask(name, network, fixed, moving)
        assert isinstance(found, networks.Prediction)
        if name == "conditional":
            assert found.label.shape == (2, 1, *size)
            assert 0 <= float(found.label.detach().min()) <= float(found.label.detach().max()) <= 1
            assert found.ddf is found.velocity is found.affine is None
            continue
        assert found.ddf.shape == (2, d, *size)
        assert name == "keymorph" or float(found.ddf.detach().abs().max()) < 0.01
        assert found.label is None
        assert (found.velocity is not None) == (name in ("voxelmorph", "half", "unet velocity"))
        assert (found.affine is not None) == (name in ("globalnet", "keymorph"))


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_is_reached(name):
    torch.manual_seed(0)
    network = SMALL[name](2)
    fixed, moving = images((16, 12), (16, 12))
    for parameter in network.head.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    found = ask(name, network, fixed, moving)
    out = found.label if name == "conditional" else found.ddf
    out.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
        assert float(parameter.grad.abs().max()) > 0, key


@pytest.mark.parametrize("name", SMALL)
def test_training_and_prediction_are_one_function_and_pairs_are_alone(name):
    torch.manual_seed(0)
    network = SMALL[name](2)
    for parameter in network.head.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    fixed, moving = images((12, 9), (12, 9), batch=3)
    with torch.no_grad():
        whole = ask(name, network.train(), fixed, moving)
        alone = ask(name, network.eval(), fixed[1:2], moving[1:2])
    for a, b in zip(whole, alone, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert largest(a[1:2], b) < 1e-4


def test_several_channels_and_a_half_precision_forward():
    network = SMALL["voxelmorph"](2, channels=3)
    fixed, moving = images((12, 12), (12, 12), channels=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(fixed, moving)
    assert found.ddf.shape == (2, 2, 12, 12)


# -- fields -------------------------------------------------------------------------------------------------------
def moving_by(network, values):
    """The head made to say the same everywhere."""
    with torch.no_grad():
        for name, parameter in network.head.named_parameters():
            parameter.zero_()
            if name.endswith("bias"):
                parameter.copy_(torch.tensor(values))
    return network


@pytest.mark.parametrize("name", ["voxelmorph", "displacement", "unet velocity", "localnet", "splines"])
@pytest.mark.parametrize("size", [(16, 16), (15, 9), (33, 12)])
def test_a_constant_is_so_many_voxels_of_the_fixed_grid(name, size):
    network = moving_by(SMALL[name](2), [1.5, -0.75])
    found = network(*images(size, size))
    middle = found.ddf[0, :, size[0] // 2, size[1] // 2]
    assert middle.tolist() == pytest.approx([1.5, -0.75], abs=0.02)


@pytest.mark.parametrize("downsampling", [1, 2, 3])
def test_a_velocity_flows_both_ways(downsampling):
    torch.manual_seed(1)
    network = SMALL["voxelmorph"](2, downsampling=downsampling)
    torch.nn.init.normal_(network.head.reading.levels["0"].weight, 0.0, 1.0)
    fixed, moving = (smooth_image((24, 20), seed=k) for k in (0, 1))
    with torch.no_grad():
        found = network(fixed, moving)
        assert found.velocity.shape[2:] == tuple(-(-n // downsampling) for n in (24, 20))
        back = found.inverse_ddf()
    assert float(found.ddf.abs().max()) > 0.3
    inner = (..., slice(6, -6), slice(6, -6))
    rest = field.compose(back, found.ddf)[inner].abs().max() / found.ddf.abs().max()
    assert float(rest) < 0.2
    with pytest.raises(ValueError, match='output="velocity"'):
        networks.Prediction(ddf=found.ddf).inverse_ddf()


def test_splines_lie_in_their_space():
    torch.manual_seed(0)
    network = SMALL["splines"](2)
    for parameter in network.head.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.5)
    ddf = network(*images((21, 17), (21, 17))).ddf[0, 0].detach().double().numpy()
    for lines, n, spans in ((ddf, 21, 5), (ddf.T, 17, 4)):
        x = np.arange(n) * spans / (n - 1)  # in distances of control points, the first of which is at -1
        apart = np.abs(x[:, None] - (np.arange(spans + 3) - 1))
        basis = np.where(apart < 1, 2 / 3 - apart**2 + apart**3 / 2, np.clip(2 - apart, 0, None) ** 3 / 6)
        fitted = basis @ np.linalg.lstsq(basis, lines, rcond=None)[0]
        assert np.abs(fitted - lines).max() < 1e-4 * np.abs(lines).max()
        assert np.abs(lines).max() > 0.01


# -- matrices -----------------------------------------------------------------------------------------------------
def test_a_matrix_and_its_field_agree_in_the_world():
    network = networks.globalnet(3, initial=2, depth=1)
    with torch.no_grad():
        network.head.linear.bias.copy_(0.1 * torch.randn(12, generator=torch.Generator().manual_seed(3)))
    size = (9, 12, 7)
    fixed, moving = images(size, size)
    plain = network(fixed, moving)
    voxels = Grid(size).coordinates("voxel", dtype=torch.float64).flatten(0, -2)
    for matrix, ddf in zip(plain.affine.detach(), plain.ddf.detach(), strict=True):
        moved = voxels @ matrix[:3, :3].T + matrix[:3, 3]
        assert largest(ddf.movedim(0, -1).flatten(0, -2).double(), moved - voxels) < 1e-5
    assert float(plain.ddf.detach().abs().max()) > 0.3
    grids = [Grid(size, oblique(3)), Grid(size, affine(np.diag([2.0, 2.0, 5.0]), [3.0, 4.0, 5.0]))]
    found = network(fixed, moving, fixed_grid=grids, moving_grid=grids)
    for grid, matrix, ddf in zip(grids, found.affine.detach(), found.ddf.detach(), strict=True):
        assert largest(field.affine_ddf(matrix, grid)[0], ddf) < 1e-4


def test_a_corner_goes_where_the_numbers_say():
    """By hand: in coordinates from -1 to 1 the head says x + 0.5, which is a quarter of the image."""
    network = networks.globalnet(2, initial=1, depth=1)
    with torch.no_grad():
        network.head.linear.bias[2] = 0.5
    ddf = network(*images((9, 5), (9, 5))).ddf
    assert largest(ddf[:, 0], torch.full((2, 9, 5), 2.0)) < 1e-5
    assert float(ddf[:, 1].detach().abs().max()) < 1e-5


def blobs(places, size):
    """(1, 1, *size): a bump at each place, of its own height."""
    axes = torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij")
    bumps = [
        (1 + k) * torch.exp(-sum((a - c) ** 2 for a, c in zip(axes, place, strict=True)) / 8)
        for k, place in enumerate(places)
    ]
    return torch.stack(bumps)


def test_keypoints_are_centers_of_mass_and_the_map_is_their_least_squares_fit():
    """A head that reads three maps of blobs: what NumPy's weighted least squares makes of their centers."""
    size = (24, 30)
    fixed_at, moving_at = [(6.0, 7.0), (16.0, 9.0), (10.0, 22.0)], [(8.0, 6.0), (17.0, 11.0), (9.0, 23.0)]
    head = networks.heads.KeypointHead(2, {0: 6}, points=3, calm=0.0)
    for reading in head.reading:
        torch.nn.init.zeros_(reading.bias)
        torch.nn.init.zeros_(reading.weight)
        for k in range(3):
            reading.weight.data[k, k, 1, 1] = 1.0
    big = 60.0  # so that softplus is linear where the blob is and nothing elsewhere
    maps = [big * blobs(places, size) - 20.0 for places in (moving_at, fixed_at)]
    found = head({0: torch.cat(maps)[None]}, size, size)
    heat = [functional.softplus(m).double().square() for m in maps]
    mass = [h.sum((1, 2)).numpy() for h in heat]
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    centers = [np.stack([(h[..., None] * index).sum((0, 1)) / h.sum() for h in each.numpy()]) for each in heat]
    w = np.sqrt(mass[0] / mass[0].sum() * mass[1] / mass[1].sum())[:, None]
    ahead = np.column_stack([centers[1], np.ones(3)])
    expected = np.linalg.lstsq(w * ahead, w * centers[0], rcond=None)[0].T
    assert np.allclose(found.affine[0, :2].detach(), expected, atol=1e-8)
    assert np.allclose(centers[1], fixed_at, atol=0.5)


def test_keypoints_move_with_the_image():
    """Far from the rims, a shifted moving image shifts the map."""
    torch.manual_seed(0)
    network = networks.keymorph(2, initial=4, depth=2, points=8)
    for reading in network.head.reading:
        torch.nn.init.normal_(reading.weight, 0.0, 3.0)
        torch.nn.init.constant_(reading.bias, -4.0)
    image = torch.zeros(1, 1, 64, 64)
    image[..., 24:40, 24:40] = smooth_image((16, 16))
    with torch.no_grad():
        still, moved = (network(image, image.roll(shift, dims=2)).ddf for shift in (0, 4))
    inner = (moved - still)[0, :, 24:40, 24:40].mean((1, 2))
    assert 2.0 < float(inner[0]) < 5.0
    assert abs(float(inner[1])) < 0.7


def test_without_anything_to_hold_on_to_the_linear_part_is_the_identity():
    head = networks.heads.KeypointHead(2, {0: 4}, points=1)
    found = head({0: torch.rand(2, 4, 10, 12)}, (10, 12), (10, 12))
    assert largest(found.affine[:, :2, :2] - torch.eye(2, dtype=torch.float64)) < 1e-9
    with pytest.raises(ValueError, match="at least 1"):
        networks.heads.KeypointHead(2, {0: 4}, points=0)


# -- where the moving image lies -----------------------------------------------------------------------------------
def test_the_moving_image_is_laid_on_the_fixed_grid_through_the_world():
    network = SMALL["displacement"](2)
    seen = []
    network.backbone.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    fixed, moving = images((12, 8), (9, 9))
    fixed_grids = [Grid((12, 8), affine(np.diag([1.0, 2.0]), [k, 0.0])) for k in (0.0, 2.0)]
    moving_grid = Grid((9, 9), affine(np.diag([1.5, 1.5]), [1.0, 1.0]))
    network(fixed, moving, fixed_grid=fixed_grids, moving_grid=moving_grid)
    for k, grid in enumerate(fixed_grids):
        assert torch.equal(seen[0][k, :1], field.resample(moving[k : k + 1], moving_grid, grid)[0])
    assert torch.equal(seen[0][:, 1:], fixed)
    network(fixed, moving)
    expected = functional.interpolate(moving, (12, 8), mode="bilinear", align_corners=True)
    assert largest(seen[1][:, :1], expected) < 1e-5


# -- VoxelMorph's published weights ------------------------------------------------------------------------------
def published(d, encoder=(4, 6), decoder=(6, 5), remaining=(4, 3), seed=0):
    """A file as VoxelMorph saves one, with weights that move something."""
    generator = torch.Generator().manual_seed(seed)

    def weights(name, a, b, spread=0.3):
        state[f"{name}.weight"] = spread * torch.randn(b, a, *[3] * d, generator=generator) * 3 ** (1 - d / 2)
        state[f"{name}.bias"] = 0.1 * torch.randn(b, generator=generator)

    state = {}
    before = 2
    for k, out in enumerate(encoder):
        weights(f"unet_model.encoder.{k}.0.main", before, out)
        before = out
    for k, out in enumerate(decoder):
        weights(f"unet_model.decoder.{k}.0.main", before, out)
        before = out + encoder[-1 - k]
    for k, out in enumerate(remaining):
        weights(f"unet_model.remaining.{k}.main", before, out)
        before = out
    weights("flow", before, d, spread=0.5)
    config = {"inshape": (16,) * d, "nb_unet_features": [list(encoder), [*decoder, *remaining]], "int_steps": 7}
    return {"config": config | {"int_downsize": 2, "src_feats": 1, "bidir": False}, "model_state": state}


def their_ddf(saved, moving, fixed):
    """Their forward pass, written from the paper and the names in the file, with torch alone."""
    state, d = saved["model_state"], moving.ndim - 2
    conv = {2: functional.conv2d, 3: functional.conv3d}[d]
    pool = {2: functional.max_pool2d, 3: functional.max_pool3d}[d]
    linear = {2: "bilinear", 3: "trilinear"}[d]

    def block(x, name):
        return functional.leaky_relu(conv(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1), 0.2)

    x, skips = torch.cat([moving, fixed], 1), []
    levels = len(saved["config"]["nb_unet_features"][0])
    for k in range(levels):
        x = block(x, f"unet_model.encoder.{k}.0.main")
        skips.append(x)
        x = pool(x, 2)
    for k in range(levels):
        x = block(x, f"unet_model.decoder.{k}.0.main")
        x = torch.cat([x.repeat_interleave(2, 2).repeat_interleave(2, 3) if d == 2 else _thrice(x), skips.pop()], 1)
    for k in range(len(saved["config"]["nb_unet_features"][1]) - levels):
        x = block(x, f"unet_model.remaining.{k}.main")
    x = conv(x, state["flow.weight"], state["flow.bias"], padding=1)
    x = functional.interpolate(x, scale_factor=0.5, mode=linear, align_corners=True) * 0.5
    velocity, flow = x, x / 2**7
    lines = [torch.arange(n, dtype=x.dtype) for n in x.shape[2:]]
    at = torch.stack(torch.meshgrid(*lines, indexing="ij"))[None]
    for _ in range(7):
        places = (at + flow).movedim(1, -1)
        unit = torch.stack([2 * places[..., k] / (n - 1) - 1 for k, n in enumerate(x.shape[2:])], -1).flip(-1)
        flow = flow + functional.grid_sample(flow, unit, align_corners=True)
    return functional.interpolate(2 * flow, scale_factor=2, mode=linear, align_corners=True), velocity


def _thrice(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)


@pytest.mark.parametrize("d", [2, 3])
def test_published_weights_do_what_they_did(tmp_path, d):
    saved = published(d)
    saved["model_state"]["transformer.grid"] = torch.zeros(1, d, *[16] * d)
    torch.save(saved, tmp_path / "0100.pt")
    network = networks.load_voxelmorph(tmp_path / "0100.pt").double()  # so that only formulas can differ
    saved["model_state"] = {name: value.double() for name, value in saved["model_state"].items()}
    fixed, moving = (smooth_image((16,) * d, seed=k).double() for k in (0, 1))
    with torch.no_grad():
        found = network(fixed, moving)
        ddf, velocity = their_ddf(saved, moving, fixed)
    assert float(ddf.abs().max()) > 0.5
    assert largest(found.velocity, velocity) < 1e-8
    assert largest(found.ddf, ddf) < 1e-8


def test_published_weights_without_integration(tmp_path):
    saved = published(2)
    saved["config"]["int_steps"] = 0
    torch.save(saved, tmp_path / "a.pt")
    found = networks.load_voxelmorph(tmp_path / "a.pt")(*images((16, 16), (16, 16)))
    assert found.velocity is None


class Payload:
    def __reduce__(self):
        return (open, ("stolen.txt", "w"))


@pytest.mark.parametrize("how", ["payload", "pickle", "truncated", "text", "other", "levels", "half", "foreign"])
def test_files_that_are_not_loaded(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    path, saved = tmp_path / "a.pt", published(2)
    words = "damaged, or holds more than weights"
    if how == "payload":
        torch.save(saved | {"extra": Payload()}, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Payload()))
    elif how == "text":
        path.write_text("weights")
    elif how == "truncated":
        torch.save(saved, path)
        path.write_bytes(path.read_bytes()[:-3000])
    elif how == "other":
        torch.save({"state_dict": {}}, path)
        words = "config and model_state"
    elif how == "levels":
        saved["config"]["nb_unet_conv_per_level"] = 2
        torch.save(saved, path)
        words = "nb_unet_conv_per_level=2"
    elif how == "half":
        saved["model_state"]["flow.weight"] = saved["model_state"]["flow.weight"][:, :2]
        torch.save(saved, path)
        words = "another network"
    else:
        saved["model_state"]["attention.weight"] = torch.zeros(3)
        torch.save(saved, path)
        words = r"attention\.weight"
    with pytest.raises(ValueError, match=words) as raised:
        networks.load_voxelmorph(path)
    assert str(path) in str(raised.value)
    assert not (tmp_path / "stolen.txt").exists()
    with pytest.raises(FileNotFoundError, match="no such file"):
        networks.load_voxelmorph(tmp_path / "nothing.pt")


# -- learning -----------------------------------------------------------------------------------------------------
def test_a_network_learns_to_move_one_image_onto_another():
    torch.manual_seed(0)
    network = networks.voxelmorph(2, encoder=(8, 8), decoder=(8, 8), final=(8,))
    fixed = smooth_image((32, 32), seed=0)
    truth = torch.zeros(1, 2, 32, 32)
    truth[:, 0], truth[:, 1] = 1.5, -1.0
    moving = field.warp(fixed, -truth)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        found = network(fixed, moving)
        loss = losses.mse_loss(field.warp(moving, found.ddf), fixed) + 0.1 * losses.diffusion_loss(found.ddf)
        loss.backward()
        optimizer.step()
    inner = (..., slice(6, -6), slice(6, -6))
    assert float((found.ddf.detach() - truth)[inner].norm(dim=1).mean()) < 0.4


# -- what is said of what does not fit -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda n: n(torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)), r"fixed must be \(b, 1, \*2 sizes\)"),
        (lambda n: n(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8)), "moving must be"),
        (lambda n: n(torch.zeros(2, 1, 8, 8), torch.zeros(1, 1, 8, 8)), "as many; got 2 and 1"),
        (lambda n: n(torch.zeros(1, 1, 0, 8), torch.zeros(1, 1, 8, 8)), "fixed must be"),
        (lambda n: n(*images((8, 8), (8, 8)), moving_label=torch.zeros(2, 1, 8, 8)), "takes no label"),
        (lambda n: n(*images((8, 8), (8, 8)), fixed_grid=Grid((8, 8))), "together, or neither"),
        (lambda n: n(*images((8, 8), (8, 8)), fixed_grid=[Grid((8, 8))] * 3), "one for each of 2 pairs; got 3"),
        (lambda n: SMALL["conditional"](2)(*images((8, 8), (8, 8))), "give moving_label"),
        (
            lambda n: SMALL["conditional"](2)(*images((8, 8), (8, 8)), moving_label=torch.zeros(2, 3, 8, 8)),
            "one mask on the moving image's grid",
        ),
        (lambda n: networks.unet(2, depth=2, levels=(3,)), "levels between 0 and depth"),
        (lambda n: networks.voxelmorph(2, encoder=(4,), decoder=(4, 4)), "as many levels"),
        (lambda n: networks.voxelmorph(2, downsampling=0), "downsampling must be at least 1"),
        (lambda n: networks.localnet(2, control_points=0), "control_points"),
    ],
)
def test_one_sentence_for_what_does_not_fit(call, words):
    with pytest.raises(ValueError, match=words):
        call(SMALL["displacement"](2))


@pytest.mark.parametrize("initial", [4, 16])
@pytest.mark.parametrize("dim", [2, 3])
def test_the_first_step_of_adam_moves_an_affine_network_by_little(dim, initial):
    torch.manual_seed(0)
    network = networks.globalnet(dim, initial=initial)
    fixed, moving = torch.rand(2, 2, 1, *[48] * dim)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses.mse_loss(field.warp(moving, network(fixed, moving).ddf + 1.5), fixed).backward()
    optimizer.step()
    moved = network(fixed, moving).ddf.detach().abs().max()
    assert 0.5 < float(moved) < 4.8  # at most a tenth of the image; 47 to 1000 voxels where features are summed
