"""The benchmark of the loaders: what it measures and writes; no time is asserted."""

import json

from bench import data as bench


def test_every_way_is_measured_and_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "EPOCHS", 1)
    words = ["--pairs", "4", "--size", "12", "--batch-size", "2", "--workers", "1", "-o", str(tmp_path)]
    assert bench.main(words) == 0
    report = json.loads((tmp_path / "data.json").read_text())
    assert [row["what"] for row in report["rows"]] == [
        "files, each time", "files, 1 workers", "cached on disk", "cached in memory", "the copy alone",
    ]  # fmt: skip
    assert report["rows"][0]["faster"] == 1
    assert all(row["seconds"] > 0 for row in report["rows"])
    assert "| cached in memory |" in (tmp_path / "data.md").read_text()
    assert "cached in memory" in capsys.readouterr().out
