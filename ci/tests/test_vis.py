"""`reglib vis`: as many pictures as asked for, of the slices asked for, and one sentence for what cannot be drawn."""

import numpy as np
import pytest
import torch
from helpers import smooth_image
from PIL import Image

from reglib import cli, io, vis
from reglib.grid import Grid

GRID = Grid((14, 10, 6), torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0])))


@pytest.fixture
def scans(tmp_path):
    """Two volumes, of 6 and 4 slices, and a ddf for the first one's grid."""
    paths = [tmp_path / "first.nii.gz", tmp_path / "second.nii.gz"]
    io.save_image(paths[0], smooth_image(GRID.shape, seed=0), GRID)
    io.save_image(paths[1], smooth_image((12, 12, 4), seed=1), Grid((12, 12, 4)))
    ddf = torch.zeros(1, 3, *GRID.shape)
    ddf[:, 0] = 3.0
    io.save_ddf(tmp_path / "ddf.nii.gz", ddf, GRID)
    return paths


def frames(path):
    with Image.open(path) as picture:
        found = []
        for k in range(picture.n_frames):
            picture.seek(k)
            found.append(np.asarray(picture.convert("L")).astype(int))
        return found


def run(*words):
    return cli.main(["vis", *map(str, words)])


def test_a_gif_through_the_slices_of_each(scans, tmp_path, capsys):
    assert run("-m", 0, "-i", f"{scans[0]}, {scans[1]}", "-s", tmp_path / "out", "--interval", 120) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / f"{name}.gif") for name in ("first", "second")]
    assert [len(frames(tmp_path / "out" / f"{name}.gif")) for name in ("first", "second")] == [6, 4]
    with Image.open(tmp_path / "out" / "first.gif") as picture:
        assert picture.info["duration"] == 120
        assert picture.info["loop"] == 0
    moving = frames(tmp_path / "out" / "first.gif")
    assert np.abs(moving[0] - moving[5]).mean() > 1


def test_a_gif_of_the_warp(scans, tmp_path):
    words = ("-m", 1, "-i", scans[0], "--ddf-path", tmp_path / "ddf.nii.gz", "-s", tmp_path / "out")
    assert run(*words, "--num_interval", 5, "--slice_inds", "1,4") == 0
    for k in (1, 4):
        shown = frames(tmp_path / "out" / f"first_slice_{k}.gif")
        assert len(shown) == 5
        steps = [np.abs(frame - shown[0]).mean() for frame in shown]
        assert steps == sorted(steps)
        assert steps[-1] > 1
    image, _ = io.load_image(scans[0])
    thin, grid = vis._slab(torch.zeros(1, 3, *GRID.shape), GRID, 4)
    assert grid.shape == (14, 10, 1)
    assert thin.shape[2:] == grid.shape
    stack = vis._stack(image)
    assert stack[4].shape == (10, 14)
    low, high = vis.plot.window(image)
    expected = ((image[0, 0, 3, 2, 4] - low) / (high - low)).clamp(0, 1)
    assert stack[4][-1 - 2, 3] == pytest.approx(float(expected), abs=1e-5)  # first axis across, second one up


def test_tiles_and_a_tiled_gif(scans, tmp_path):
    both = f"{scans[0]},{scans[1]}"
    assert (
        run("-m", 2, "-i", both, "--slice-inds", "0,3", "-s", tmp_path, "--col-titles", "a, b", "--fname", "t.png") == 0
    )
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.width == 520
        assert picture.height > 400
    assert run("-m", 3, "-i", both, "--size", "2,1", "-s", tmp_path) == 0
    assert len(frames(tmp_path / "visualisation.gif")) == 4
    assert run("-m", 2, "-i", both, "-s", tmp_path) == 0
    assert (tmp_path / "visualisation.png").is_file()


def test_two_dimensions(tmp_path):
    io.save_image(tmp_path / "flat.png", 255 * smooth_image((20, 30), seed=0).clamp(0, 1), Grid((20, 30)))
    assert run("-m", 0, "-i", tmp_path / "flat.png", "-s", tmp_path) == 0
    assert len(frames(tmp_path / "flat.gif")) == 1
    ddf = torch.zeros(1, 2, 20, 30)
    ddf[:, 1] = 4.0
    io.save_ddf(tmp_path / "flat.nii.gz", ddf, Grid((20, 30)))
    words = ("-m", 1, "-i", tmp_path / "flat.png", "--ddf-path", tmp_path / "flat.nii.gz", "-s", tmp_path)
    assert run(*words, "--num-interval", 3) == 0
    assert len(frames(tmp_path / "flat_slice_0.gif")) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-m", 1, "-i", "A"), "give --ddf-path"),
        (("-m", 2, "-i", "A", "--slice-inds", "9"), "slice_inds must be from 0 to 5; got 9"),
        (("-m", 2, "-i", "A", "--slice-inds", "x"), "--slice-inds must be whole numbers"),
        (("-m", 2, "-i", "A,B", "--slice-inds", "5"), "has 4 slices; there is no slice 5"),
        (("-m", 2, "-i", "A,B", "--col-titles", "one"), "col_titles must be as many as images, 2; got 1"),
        (("-m", 3, "-i", "A,B", "--size", "1,1"), "room for 2 images; got 1 x 1"),
        (("-m", 3, "-i", "A,B", "--size", "3"), "size must be rows,columns"),
        (("-m", 0, "-i", "nowhere.nii.gz"), "no such file"),
        (("-m", 0, "-i", "A", "--interval", "0"), "interval must be at least 1 ms"),
        (("-m", 3, "-i", ","), "give at least one image"),
    ],
)
def test_what_cannot_be_drawn(scans, tmp_path, capsys, words, said):
    named = [str(w).replace("A", str(scans[0])).replace("B", str(scans[1])) if w in ("A", "A,B") else w for w in words]
    assert run(*named, "-s", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list((tmp_path).rglob("*.gif"))


def test_warp_in_deepregs_spelling(scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["warp", "--image", str(scans[0]), "--ddf", str(tmp_path / "ddf.nii.gz")]) == 0
    ours = ["warp", str(scans[0]), str(tmp_path / "ddf.nii.gz"), "-o", "ours.nii.gz"]
    assert cli.main(ours) == 0
    assert torch.equal(io.load_image("warped.nii.gz")[0], io.load_image("ours.nii.gz")[0])
    short = ["warp", "-i", str(scans[0]), "-d", str(tmp_path / "ddf.nii.gz"), "-o", "third.nii.gz"]
    assert cli.main(short) == 0
