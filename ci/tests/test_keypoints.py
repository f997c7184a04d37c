"""Photographs of eyes: what is found on them, what it is matched with, the map, and that a score is what it says."""

import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from helpers import largest
from scipy.interpolate import interp1d
from scipy.optimize import brentq

from reglib import cli, keypoints, phantoms, retina
from reglib.keypoints import alignment, homography, scores


@pytest.fixture(scope="module")
def pair():
    return phantoms.retina_pair(0, size=384)


def photo(seed=0, shape=(96, 128), dtype=np.uint8):
    rng = np.random.default_rng(seed)
    return cv2.GaussianBlur(rng.integers(0, np.iinfo(dtype).max, (*shape, 3)).astype(dtype), (0, 0), 2.0)


def written(path, picture):
    cv2.imwrite(str(path), picture)
    return path


# -- photographs --------------------------------------------------------------------------------------------------
def test_every_kind_of_picture_becomes_rgb(tmp_path):
    rgb = photo()
    gray, deep = rgb[..., 1], photo(dtype=np.uint16)
    alpha = np.dstack([rgb[..., ::-1], np.full(rgb.shape[:2], 200, np.uint8)])
    assert np.array_equal(keypoints.load_photo(written(tmp_path / "a.png", rgb[..., ::-1])), rgb)
    assert np.array_equal(keypoints.load_photo(written(tmp_path / "b.png", gray)), np.dstack([gray] * 3))
    assert np.array_equal(keypoints.load_photo(written(tmp_path / "c.pgm", gray)), np.dstack([gray] * 3))
    assert np.array_equal(keypoints.load_photo(written(tmp_path / "d.png", alpha)), rgb)
    assert np.array_equal(keypoints.load_photo(written(tmp_path / "e.png", deep[..., ::-1])), deep)


def test_the_field_of_view_ends_before_the_rim_and_knows_pictures_without_one(pair):
    """Ours are round, with a radius of .47 of the side; a picture that is bright to its edges is all field."""
    image = keypoints.preprocess(pair.query)
    field = keypoints.field_of_view(pair.query, image.shape, margin=10)
    y, x = np.indices(field.shape)
    apart = np.hypot(x - 383.5, y - 383.5)
    assert field[apart < 0.47 * 768 - 16].all()
    assert not field[apart > 0.47 * 768 - 7].any()
    assert keypoints.field_of_view(pair.query[120:250, 130:260], (1, 1, 128, 128)).all()
    cut = keypoints.field_of_view(pair.query[:, 100:280], (1, 1, 384, 180))  # two straight edges without a rim
    assert cut[192, 0]
    assert cut[192, -1]
    assert not cut[0].any()


def test_what_lies_along_the_rim_tells_nothing():
    """An extractor that sees the rim alone: every photograph would fit every other, without moving."""

    def rim(image):
        turn = torch.linspace(0, 6.28, 101)[:-1]
        points = 383.5 + 0.46 * 768 * torch.stack([turn.cos(), turn.sin()], dim=1)
        return keypoints.Keypoints(points, torch.ones(100), torch.eye(100))

    eyes = [phantoms.retina_pair(seed) for seed in (3, 4)]
    found = keypoints.align(eyes[0].query, eyes[1].reference, extract=rim)
    assert not found.accepted
    assert "there are 0" in found.reason


def test_what_is_no_photograph_is_said_in_a_sentence(tmp_path):
    (tmp_path / "words.jpg").write_text("an eye")
    (tmp_path / "empty.jpg").touch()
    tiny, blank = (
        written(tmp_path / name, np.full(shape, 9, np.uint8))
        for name, shape in (("t.png", (8, 99)), ("b.png", (99, 99)))
    )
    for path, words in (
        (tiny, "at least 64 pixels"),
        (blank, "is blank"),
        (tmp_path / "words.jpg", "must be a picture"),
    ):
        with pytest.raises(ValueError, match=words):
            keypoints.load_photo(path)
    with pytest.raises(ValueError, match="must be a picture"):
        keypoints.load_photo(tmp_path / "empty.jpg")
    with pytest.raises(FileNotFoundError, match="no such file"):
        keypoints.load_photo(tmp_path / "none.jpg")


def test_sixteen_bits_and_eight_give_one_image():
    eight = photo()
    first, second = (keypoints.preprocess(x, size=64) for x in (eight, eight.astype(np.uint16) * 257))
    assert largest(first - second) == 0
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    assert float(first.std()) > 0.1


@pytest.mark.parametrize(("size", "expected"), [(64, (48, 64)), ((40, 72), (40, 72)), (1000, (752, 1000))])
def test_the_small_image_has_sides_of_multiples_of_eight(size, expected):
    assert keypoints.preprocess(photo(shape=(96, 128)), size=size).shape == (1, 1, *expected)


def test_places_on_the_small_image_are_places_on_the_photograph():
    drawn = np.full((160, 240, 3), 10, np.uint8)
    cv2.circle(drawn, (151, 63), 6, (250, 250, 250), -1)
    image = keypoints.preprocess(drawn, size=120)
    rows, columns = np.indices(image.shape[2:])
    weight = (image[0, 0].numpy() - float(image.min())) ** 2
    middle = np.array([[(columns * weight).sum(), (rows * weight).sum()]]) / weight.sum()
    found = keypoints.apply_homography(keypoints.full_from_working(drawn, image), middle)
    assert np.allclose(found, [[151, 63]], atol=0.3)


# -- keypoints ----------------------------------------------------------------------------------------------------
def test_the_largest_in_its_window_stays_and_of_equal_ones_the_first():
    image = torch.zeros(1, 1, 40, 50)
    image[0, 0, 10, 10], image[0, 0, 12, 13], image[0, 0, 30, 20] = 0.9, 0.8, 0.5
    image[0, 0, 20, 40] = image[0, 0, 20, 42] = image[0, 0, 22, 41] = 0.7  # a plateau
    places, values = keypoints.detect(image, radius=5, threshold=0.1)
    assert places.tolist() == [[10, 10], [40, 20], [20, 30]]
    assert values.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert keypoints.detect(image, radius=5, threshold=0.5)[0].tolist() == [[10, 10], [40, 20]]  # above, not at it
    assert keypoints.detect(image, radius=5, threshold=0.1, most=2)[0].tolist() == [[10, 10], [40, 20]]
    assert keypoints.detect(image, radius=5, threshold=0.1, border=10)[0].tolist() == [[10, 10]]


def test_a_flat_map_keeps_points_apart_and_is_the_same_every_time():
    flat = torch.full((1, 1, 64, 64), 0.5)
    first, again = (keypoints.detect(flat, radius=6)[0] for _ in range(2))
    assert torch.equal(first, again)
    apart = (first[:, None] - first[None]).abs().amax(-1) + 99 * torch.eye(len(first))
    assert len(first) > 0
    assert float(apart.min()) > 6


def test_subpixel_finds_the_top_of_a_bump():
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    bump = torch.exp(-((x - 41.3) ** 2 + (y - 22.6) ** 2) / 50)[None, None]
    coarse, fine = (keypoints.detect(bump, subpixel=fine)[0][0] for fine in (False, True))
    assert coarse.tolist() == [41, 23]
    assert fine.tolist() == pytest.approx([41.3, 22.6], abs=0.02)


def test_descriptors_at_whole_cells_are_the_maps_own():
    stored = torch.nn.functional.normalize(torch.randn(1, 16, 7, 9, generator=torch.Generator().manual_seed(0)), dim=1)
    rows, columns = torch.meshgrid(torch.arange(7), torch.arange(9), indexing="ij")
    spread = torch.tensor([(8 * 9 - 1) / (9 - 1), (8 * 7 - 1) / (7 - 1)])
    at = torch.stack([columns, rows], -1).reshape(-1, 2) * spread
    assert largest(keypoints.describe(stored, at) - stored[0].flatten(1).T) < 1e-5
    beyond = keypoints.describe(stored, torch.tensor([[75.0, 60.0]]))  # 768 pixels give 94 cells, and 751 < 767
    assert largest(beyond[0] - stored[0, :, -1, -1]) < 1e-5


def test_matching_is_a_ratio_of_distances():
    reference = torch.eye(4)
    query = torch.stack([reference[2], 0.9 * reference[0] + 0.1 * reference[1], reference[0] + reference[1]])
    assert keypoints.match(query, reference, ratio=0.8).tolist() == [[0, 2], [1, 0]]
    twice = torch.stack([reference[0], reference[0] + 0.1])
    assert keypoints.match(twice, reference, ratio=0.9).tolist() == [[0, 0], [1, 0]]
    assert keypoints.match(twice, reference, ratio=0.9, mutual=True).tolist() == [[0, 0]]
    assert len(keypoints.match(query[:0], reference)) == len(keypoints.match(query, reference[:1])) == 0


def test_sift_finds_a_blob_and_keeps_apart_what_it_is_told_to(pair):
    image = keypoints.preprocess(pair.query, size=384)
    every, apart = (keypoints.sift(radius=radius)(image) for radius in (0, 8))
    assert 50 < len(apart) < len(every)
    far = (apart.points[:, None].round() - apart.points[None].round()).abs().amax(-1) + 99 * torch.eye(len(apart))
    assert float(far.min()) > 8
    assert set(map(tuple, apart.points.tolist())) <= set(map(tuple, every.points.tolist()))
    assert float(apart.scores.max()) == float(every.scores.max())
    assert largest(every.descriptors.norm(dim=1) - 1) < 1e-5
    assert len(keypoints.sift()(torch.full((1, 1, 64, 64), 0.5))) == 0


def test_the_network_and_its_checkpoint(tmp_path):
    torch.manual_seed(0)
    made = keypoints.SuperRetina((4, 4, 8, 8), 16).eval()
    image = torch.rand(1, 1, 64, 96)
    with torch.no_grad():
        seen = made(image)
        torch.save({"net": made.state_dict(), "epoch": 3}, tmp_path / "published.pth")
        again = keypoints.load_superretina(tmp_path / "published.pth")(image)
    assert seen.probability.shape == (1, 1, 64, 96)
    assert seen.descriptors.shape == (1, 16, 6, 10)
    assert float(seen.probability.min()) > 0
    assert float(seen.probability.max()) < 1
    assert torch.equal(again.probability, seen.probability)
    assert torch.equal(again.descriptors, seen.descriptors)
    with pytest.raises(ValueError, match="multiples of 8"):
        made(torch.rand(1, 1, 60, 96))


def test_the_published_sizes():
    made = keypoints.SuperRetina()
    shapes = {name: tuple(x.shape) for name, x in made.state_dict().items()}
    assert shapes["conv1a.weight"] == (64, 1, 3, 3)
    assert shapes["convDb.weight"] == (256, 256, 4, 4)
    assert shapes["trans_conv.weight"] == (256, 256, 2, 2)
    assert shapes["dconv_up3.0.weight"] == (128, 256, 3, 3)
    assert shapes["dconv_up1.2.weight"] == (64, 64, 3, 3)
    assert shapes["conv_last.weight"] == (1, 64, 1, 1)
    assert made(torch.zeros(1, 1, 768, 768)[..., :64, :64]).descriptors.shape[2:] == (6, 6)


def test_onnx_says_what_pytorch_says(tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    made = keypoints.SuperRetina((4, 4, 8, 8), 16).eval()
    torch.save({"net": made.state_dict()}, tmp_path / "made.pth")
    out = tmp_path / "made.onnx"
    assert cli.main(["retina", "export", str(tmp_path / "made.pth"), "-o", str(out), "--size", "64"]) == 0
    assert "from PyTorch" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.onnx", "made.pth"]
    images = torch.rand(2, 1, 64, 64)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = made(images)
    assert largest(torch.from_numpy(found[0]) - expected.probability) < 1e-5
    assert largest(torch.from_numpy(found[1]) - expected.descriptors) < 1e-5
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install 'reglib\[onnx\]'"):
        keypoints.export_onnx(made, out, size=(64, 64))


class Payload:
    def __reduce__(self):
        return print, ("run",)


def test_a_checkpoint_that_is_none_is_refused(tmp_path, capsys):
    torch.save({"net": {"conv1a.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    torch.save(Payload(), tmp_path / "payload.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    for name, words in (("other", "lacks"), ("payload", "must be a checkpoint"), ("cut", "must be a checkpoint")):
        with pytest.raises(ValueError, match=words):
            keypoints.load_superretina(tmp_path / f"{name}.pth")
    assert "run" not in capsys.readouterr().out


# -- maps ---------------------------------------------------------------------------------------------------------
TRUE = np.array([[1.02, -0.11, 14.0], [0.09, 0.97, -8.0], [2e-5, -1e-5, 1.0]])


def matched(n=80, wrong=30, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    query = rng.uniform(0, 700, (n, 2))
    reference = keypoints.apply_homography(TRUE, query) + rng.normal(0, noise, (n, 2))
    reference[:wrong] = rng.uniform(0, 700, (wrong, 2))
    return query, reference


@pytest.mark.parametrize("method", homography.METHODS)
def test_a_homography_is_found_among_wrong_matches(method):
    query, reference = matched()
    found = keypoints.estimate_homography(query, reference, method=method)
    corners = np.array([[0, 0], [700, 0], [700, 700], [0, 700.0]])
    off = keypoints.apply_homography(found.matrix, corners) - keypoints.apply_homography(TRUE, corners)
    assert np.abs(off).max() < 1.0
    assert found.inliers[30:].mean() > 0.95
    assert found.inliers[:30].mean() < 0.1
    again = keypoints.estimate_homography(query, reference, method=method)
    assert np.array_equal(found.matrix, again.matrix)


def test_what_no_homography_can_be_taken_from():
    query, reference = matched(n=40, wrong=0)
    line = np.column_stack([query[:, 0], 2 * query[:, 0] + 5])
    for a, b, words in (
        (query[:3], reference[:3], "at least 4"),
        (line, reference, "on one line"),
        (query, line, "on one line"),
    ):
        with pytest.raises(ValueError, match=words):
            keypoints.estimate_homography(a, b)


def test_a_quadratic_alignment_is_nearer_to_the_truth_than_a_homography(monkeypatch):
    """All of one eye, whose back is curved; and where too few agree, the homography is all there is."""
    off = []
    for seed in (6, 7, 8):
        eye = phantoms.retina_pair(seed, size=640)
        truth = eye.to_reference(eye.query_branchings)
        flat, bent = (keypoints.align(eye.query, eye.reference, model=m) for m in ("homography", "quadratic"))
        errors = [each.to_reference(eye.query_branchings) - truth for each in (flat, bent)]
        off.append([np.linalg.norm(error, axis=1).mean() for error in errors])
    assert np.mean(off, axis=0)[1] < 0.6 * np.mean(off, axis=0)[0] < 2.0
    assert np.array_equal(bent.homography, flat.homography)
    monkeypatch.setattr(alignment, "ENOUGH", 10_000)
    few = keypoints.align(eye.query, eye.reference, model="quadratic")
    assert few.quadratic is None
    assert np.array_equal(few.to_reference(truth), flat.to_reference(truth))
    with pytest.raises(ValueError, match="not aligned: no"):
        keypoints.Alignment(False, "no.", None).to_reference(truth)


def test_a_quadratic_map_follows_what_a_homography_cannot():
    rng = np.random.default_rng(1)
    query = rng.uniform(0, 700, (120, 2))
    unit = (query - 350) / 350
    bulge = 12 * np.column_stack([unit[:, 1] ** 2, unit[:, 0] ** 2])  # which no perspective makes
    reference = query + np.array([20, -7]) + bulge + rng.normal(0, 0.2, query.shape)
    reference[:25] = rng.uniform(0, 700, (25, 2))
    flat = keypoints.estimate_homography(query, reference, threshold=8.0)
    bent, agree = keypoints.estimate_quadratic(query, reference, flat.matrix)
    truth = (query + np.array([20, -7]) + bulge)[25:]
    off = {"flat": keypoints.apply_homography(flat.matrix, query[25:]) - truth, "bent": bent.points(query[25:]) - truth}
    mean = {name: np.linalg.norm(x, axis=1).mean() for name, x in off.items()}
    assert mean["bent"] < 0.15 < 1.0 < mean["flat"]
    assert agree[25:].all()
    assert agree[:25].mean() < 0.1
    with pytest.raises(ValueError, match="12 matches"):
        keypoints.estimate_quadratic(query[:30], reference[:30], flat.matrix)


# -- two photographs ----------------------------------------------------------------------------------------------
def error_px(found, pair):
    """Mean error at the branchings, in pixels of FIRE's photographs, 2912 wide."""
    at = pair.query_branchings
    off = keypoints.apply_homography(found.homography, at) - pair.to_reference(at)
    return float(np.linalg.norm(off, axis=1).mean()) * 2912 / pair.query.shape[0]


def test_two_photographs_of_one_eye_are_laid_on_each_other(pair):
    found = keypoints.align(pair.query, pair.reference)
    assert found.accepted
    assert found.reason == ""
    assert len(found.passes) == 2
    assert error_px(found, pair) < 8.0  # what a homography leaves of the bulge, and a little
    assert found.inliers.sum() == found.passes[-1] > 60
    agree = keypoints.apply_homography(found.homography, found.query_points) - found.reference_points
    assert np.linalg.norm(agree, axis=1)[found.inliers].max() < 5.5 * 384 / 768


def test_photographs_of_two_sizes_meet_in_full_size_pixels(pair):
    larger = cv2.resize(pair.reference, (600, 500), interpolation=cv2.INTER_CUBIC)
    found = keypoints.align(pair.query, larger)
    at = pair.query_branchings
    truth = (pair.to_reference(at) + 0.5) * [600 / 384, 500 / 384] - 0.5
    off = np.linalg.norm(keypoints.apply_homography(found.homography, at) - truth, axis=1)
    assert off.mean() < 2.0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_eyes_are_not_laid_on_each_other(pair, seed):
    found = keypoints.align(pair.query, phantoms.retina_pair(seed, size=384).reference)
    assert not found.accepted
    assert found.homography is None
    assert found.reason


def test_a_photograph_without_anything_on_it_is_not_aligned(pair):
    smooth = np.tile(np.linspace(40, 60, 384).astype(np.uint8)[:, None, None], (1, 384, 3))
    found = keypoints.align(smooth, pair.reference)
    assert not found.accepted
    assert "matches" in found.reason


def test_the_mirror_image_is_refused():
    flipped = np.diag([-1.0, 1.0, 1.0])
    query = np.random.default_rng(0).uniform(50, 300, (60, 2))
    fit = homography.Fit(flipped, np.ones(60, dtype=bool))
    small = [torch.zeros(1, 1, 384, 384)] * 2
    from reglib.keypoints import alignment

    shifted = flipped.copy()
    shifted[0, 2] = 384
    found = alignment._Found(fit._replace(matrix=shifted), query, query)
    assert "turns part" in alignment._doubt(found, small)


# -- scores -------------------------------------------------------------------------------------------------------
def scored(pair, category, errors):
    """A pair whose errors at the control points are these."""
    at = np.column_stack([np.arange(len(errors)) * 10.0, np.arange(len(errors)) * 7.0])
    control = scores.Control(pair, category, None, None, at, at + np.column_stack([errors, np.zeros(len(errors))]))
    found = keypoints.Alignment(True, "", np.eye(3), inliers=np.ones(40, dtype=bool))
    return scores.score_pair(control, found)


def test_fire_by_hand():
    """Six pairs: the boundaries belong to the better side, but a mean of exactly t is no success at t."""
    control = scores.Control("S06_1_2", "S", None, None, np.zeros((3, 2)), np.zeros((3, 2)))
    pairs = [
        scored("S01_1_2", "S", [3.0, 3.0, 3.0]),  # mean 3: success from 4 on, 22 of 25
        scored("S02_1_2", "S", [20.0, 20.0, 20.0]),  # median of 20 is acceptable; 5 of 25
        scored("P01_1_2", "P", [0.0, 0.0, 50.0]),  # a largest of 50 is acceptable; mean 16 2/3, 9 of 25
        scored("P02_1_2", "P", [0.0, 0.0, 50.001]),  # beyond it; inaccurate
        scored("A01_1_2", "A", [0.5, 0.5, 0.5]),  # 25 of 25
        scores.score_pair(control, keypoints.Alignment(False, "no", None)),
    ]
    assert [p.outcome for p in pairs] == [
        "acceptable",
        "acceptable",
        "acceptable",
        "inaccurate",
        "acceptable",
        "failed",
    ]
    found = scores.summarized(pairs)
    assert (found.failed, found.inaccurate, found.acceptable) == pytest.approx((100 / 6, 100 / 6, 400 / 6))
    expected = {"S": (22 + 5 + 0) / 75, "P": (9 + 9) / 50, "A": 1.0}
    assert found.auc == pytest.approx(expected)
    assert found.mauc == pytest.approx(sum(expected.values()) / 3)
    assert scored("S03_1_2", "S", [20.001] * 3).outcome == "inaccurate"


def fire_folder(folder, pairs):
    """FIRE's layout, with these pairs, two of them."""
    (folder / "Images").mkdir(parents=True)
    (folder / "Ground Truth").mkdir()
    for name, pair in pairs.items():
        at = pair.query_branchings[:10]
        lines = np.column_stack([pair.to_reference(at), at])
        np.savetxt(folder / "Ground Truth" / f"control_points_{name}_1_2.txt", lines)
        written(folder / "Images" / f"{name}_1.jpg", pair.reference[..., ::-1])
        written(folder / "Images" / f"{name}_2.jpg", pair.query[..., ::-1])
    return folder


def test_a_folder_in_fires_layout(tmp_path, pair, capsys):
    other = phantoms.retina_pair(1, size=384)
    strangers = phantoms.EyePair(
        pair.query, other.reference, pair.to_reference, pair.query_branchings, pair.query_branchings
    )
    fire = fire_folder(tmp_path / "FIRE", {"S01": pair, "P01": strangers, "P37": pair})
    np.savetxt(fire / "Ground Truth" / "control_points_A01_1_2.txt", np.ones((2, 4)))
    with pytest.raises(FileNotFoundError, match="A01_2"):
        keypoints.fire_scores(fire, progress=False)
    (fire / "Ground Truth" / "control_points_A01_1_2.txt").unlink()
    assert cli.main(["retina", "evaluate", str(fire), "--out", str(tmp_path / "out"), "--size", "384"]) == 0
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (told["pairs"], told["failed_percent"], told["acceptable_percent"]) == (2, 50, 50)  # without P37_1_2
    assert told["auc_S"] > 0.6
    assert told["auc_P"] == 0
    assert told["mauc"] == pytest.approx(told["auc_S"] / 2)
    lines = (tmp_path / "out" / "pairs.csv").read_text().splitlines()
    assert lines[0].startswith("pair,category,outcome,mean_px")
    assert len(lines) == 3


@pytest.mark.parametrize("content", ["1 2 3\n", "a b c d\n", "nan 1 2 3\n", ""])
def test_control_points_that_are_none(tmp_path, pair, content):
    fire = fire_folder(tmp_path / "FIRE", {"S01": pair})
    (fire / "Ground Truth" / "control_points_S01_1_2.txt").write_text(content)
    with pytest.raises(ValueError, match="four numbers a line"):
        keypoints.fire_scores(fire, progress=False)


def test_a_folder_without_control_points(tmp_path):
    with pytest.raises(FileNotFoundError, match="Ground Truth"):
        keypoints.fire_scores(tmp_path)


def test_the_equal_error_rate_by_hand():
    assert keypoints.varia_eer([40, 50, 60], [3, 5, 8]).eer == 0
    found = keypoints.varia_eer([40, 50, 60], [3, 5, 8])
    assert 8 < found.threshold <= 40
    mixed = keypoints.varia_eer([10, 20, 30, 40], [5, 8, 12, 15])  # from 13: 1 of 4 refused, 1 of 4 taken
    assert mixed.eer == 0.25
    assert 12 < mixed.threshold <= 15
    assert keypoints.varia_eer([1, 2], [3, 4]).eer == 1.0
    with pytest.raises(ValueError, match="both kinds"):
        keypoints.varia_eer([1], [])


def test_the_equal_error_rate_is_that_of_the_curve():
    """By bisection on the curve of true against false positives, as SuperRetina's script finds it."""
    rng = np.random.default_rng(0)
    own, other = rng.poisson(30, 200), rng.poisson(18, 900)
    levels = [math.inf, *sorted({*own, *other}, reverse=True)]
    false, true = ([np.mean(counts >= level) for level in levels] for counts in (other, own))
    expected = brentq(lambda x: 1 - x - interp1d(false, true)(x), 0, 1)
    assert keypoints.varia_eer(own.tolist(), other.tolist()).eer == pytest.approx(expected, abs=2e-3)


def test_a_folder_in_varias_layout(tmp_path, pair):
    (tmp_path / "Images").mkdir()
    other = phantoms.retina_pair(1, size=384)
    for name, picture in (("a.pgm", pair.query), ("b.pgm", pair.reference), ("c.pgm", other.query)):
        written(tmp_path / "Images" / name, picture[..., 1])
    (tmp_path / "pair_index.txt").write_text("a.pgm, b.pgm, 1\na.pgm, c.pgm, 0\n\n")
    out = tmp_path / "out"
    assert cli.main(["retina", "evaluate", str(tmp_path), "--out", str(out), "--size", "384", "--one-pass"]) == 0
    told = json.loads((out / "metrics.json").read_text())
    assert told["eer_percent"] == 0
    assert told["pairs"] == 2
    (tmp_path / "pair_index.txt").write_text("a.pgm, d.pgm, 1\n")
    with pytest.raises(FileNotFoundError, match="line 1"):
        keypoints.varia_pairs(tmp_path)
    (tmp_path / "pair_index.txt").write_text("a.pgm b.pgm\n")
    with pytest.raises(ValueError, match="line 1"):
        keypoints.varia_pairs(tmp_path)


# -- the command line ---------------------------------------------------------------------------------------------
def test_retina_align_writes_what_it_says_and_takes_it_back(tmp_path, pair, capsys):
    query, reference = (
        written(tmp_path / name, x[..., ::-1])
        for name, x in (("query.png", pair.query), ("reference.png", pair.reference))
    )
    out = tmp_path / "out"
    assert cli.main(["retina", "align", str(query), str(reference), "-o", str(out)]) == 0
    expected = {"homography.txt", "warped.png", "result.png", "checkerboard.png", "match_result.png", "metrics.json"}
    assert {path.name for path in out.iterdir()} == expected
    matrix = np.loadtxt(out / "homography.txt")
    found = keypoints.align(keypoints.load_photo(query), keypoints.load_photo(reference))
    assert np.array_equal(matrix, found.homography)
    assert error_px(found, pair) < 8
    told = json.loads((out / "metrics.json").read_text())
    assert told["accepted"]
    assert told["inliers"] == int(found.inliers.sum())
    warped = keypoints.load_photo(out / "warped.png").astype(float)
    assert warped.shape == pair.reference.shape
    fields = [(x.max(2) > 20).astype(np.uint8) for x in (warped, pair.query, pair.reference)]
    inside = cv2.erode(cv2.min(cv2.min(*fields[:2]), fields[2]), np.ones((25, 25))) > 0
    vessels = [
        (x - cv2.GaussianBlur(x, (0, 0), 6))[inside]
        for x in (warped[..., 1], pair.query[..., 1].astype(float), pair.reference[..., 1].astype(float))
    ]
    before, after = (np.corrcoef(x, vessels[2])[0, 1] for x in (vessels[1], vessels[0]))
    assert after > 0.6
    assert before < 0.2
    stranger = written(tmp_path / "stranger.png", phantoms.retina_pair(5, size=384).query[..., ::-1])
    capsys.readouterr()
    assert cli.main(["retina", "align", str(stranger), str(reference), "-o", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("reglib: ")
    assert said.count("\n") == 1
    assert "not aligned" in said
    assert {path.name for path in out.iterdir()} == {"metrics.json"}
    assert json.loads((out / "metrics.json").read_text())["accepted"] is False


def test_a_checkerboard_shows_each_photograph_in_every_other_square(pair):
    shift = np.array([[1.0, 0, 20], [0, 1, 10], [0, 0, 1]])
    laid = keypoints.warp_photo(pair.query, shift, pair.reference.shape)
    assert np.array_equal(laid[10:, 20:], pair.query[:-10, :-20])
    seen = keypoints.checkered(laid, pair.reference, tiles=4)
    assert np.array_equal(seen[:96, :96], laid[:96, :96])
    assert np.array_equal(seen[:96, 96:192], pair.reference[:96, 96:192])
    assert np.array_equal(seen[96:192, 96:192], laid[96:192, 96:192])
    with pytest.raises(ValueError, match="one shape"):
        keypoints.checkered(laid[:-1], pair.reference)


def test_a_network_is_believed_from_another_ratio_on_than_sift(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(retina, "aligner", lambda network, **how: asked.append((network, how["ratio"])))
    monkeypatch.setattr(retina, "align_files", lambda *_: {"inliers": 1, "matches": 2, "seconds": 0.1})
    words = ["retina", "align", "a.png", "b.png", "-o", str(tmp_path)]
    for more in ([], ["--network", "net.pt"], ["--network", "net.pt", "--ratio", "0.7"]):
        assert cli.main([*words, *more]) == 0
    assert asked == [(None, 0.8), (Path("net.pt"), 0.9), (Path("net.pt"), 0.7)]


# -- eyes ---------------------------------------------------------------------------------------------------------
def test_an_eye_is_the_same_each_time_and_other_seeds_are_others(pair):
    again = phantoms.retina_pair(0, size=384)
    assert np.array_equal(again.query, pair.query)
    assert np.array_equal(again.reference, pair.reference)
    assert not np.array_equal(phantoms.retina_pair(1, size=384).query, pair.query)


@pytest.mark.parametrize("category", ["S", "P", "A"])
def test_the_true_map_takes_branchings_to_branchings(category):
    found = phantoms.retina_pair(2, size=384, category=category)
    moved = found.to_reference(found.query_branchings)
    nearest = np.linalg.norm(moved[:, None] - found.reference_branchings[None], axis=-1).min(1)
    inside = np.hypot(*((moved + 0.5) / 384 - 0.5).T) < 0.44
    assert inside.sum() >= 10
    assert nearest[inside].max() < 1e-6
