"""The benchmark of learning: what it measures and writes; no result is asserted of two epochs."""

import json

import torch

from bench import learning as bench
from reglib import io
from reglib.grid import Grid


def test_every_answer_is_scored_and_written(tmp_path, capsys):
    words = ["--size", "24", "--learn", "2", "--test", "2", "--epochs", "1", "--threads", "1", "-o", str(tmp_path)]
    assert bench.main(words) == 0
    report = json.loads((tmp_path / "learning.json").read_text())
    names = ["affine", "network", "network, two looks", "descent", "descent from two looks"]
    assert [row["what"] for row in report["rows"]] == names
    dice = {row["what"]: row["dice"] for row in report["rows"]}
    assert 0 < dice["affine"] < dice["descent"] < 1
    assert "| descent |" in (tmp_path / "learning.md").read_text()
    assert "of the way from affine to descent" in capsys.readouterr().out


def test_pairs_with_labels_are_scored_beside_their_centers_and_the_best_shift(tmp_path, capsys):
    """Balls whose centers lie apart by known millimeters."""
    for split, count in (("train", 2), ("test", 1)):
        for k in range(count):
            for role, shift, shape in (("mr", 3.0 + k, (26, 26, 24)), ("us", 0.0, (22, 24, 20))):
                grid = Grid.centered(shape, 1.0, center=(0.0, 0.0, 5.0 if role == "mr" else 0.0))
                middle = torch.tensor([shift, 0.0, 5.0 if role == "mr" else 0.0], dtype=torch.float64)
                ball = ((grid.coordinates("world", dtype=torch.float64) - middle).norm(dim=-1) < 6)[None, None]
                folder = tmp_path / "pairs" / split
                io.save_image(folder / f"{role}_images" / f"case{k}.nii.gz", ball.float(), grid)
                io.save_labels(folder / f"{role}_labels" / f"case{k}.nii.gz", ball.long(), grid)
    words = ["--pairs", str(tmp_path / "pairs"), "--roles", "mr", "us", "--epochs", "2", "-o", str(tmp_path)]
    assert bench.main(words) == 0
    rows = {row["what"]: row["dice"] for row in json.loads((tmp_path / "learning_pairs.json").read_text())["rows"]}
    assert list(rows) == ["centered", "network", "best shift"]
    assert 0.4 < rows["centered"] < 0.8 < 0.98 < rows["best shift"]
    assert 0 <= rows["network"] <= 1
    assert "2 pairs to learn from by their labels, 1 others" in (tmp_path / "learning_pairs.md").read_text()
    status = bench.main([*words, "--fold", "0", "--folds", "3", "--check"])
    rows = {row["what"]: row["dice"] for row in json.loads((tmp_path / "learning_pairs.json").read_text())["rows"]}
    assert status == int(rows["network"] - rows["centered"] < bench.BEYOND)
    assert "beyond centered images" in capsys.readouterr().out
