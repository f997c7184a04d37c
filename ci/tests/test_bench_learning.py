"""The benchmark of learning: what it measures and writes; no result is asserted of two epochs."""

import json

from bench import learning as bench


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
