"""The benchmark of retinal alignment: its truth, its peer and its bars; no result is asserted of one epoch."""

import json

import cv2
import numpy as np
import pytest

from bench import retina as bench
from reglib import keypoints, phantoms


@pytest.fixture(scope="module")
def photo():
    return phantoms.retina_pair(11, size=512).query


def test_a_known_map_takes_the_photograph_to_what_is_retaken(photo):
    """A bright spot is where the map says."""
    rng = np.random.default_rng(3)
    matrix = bench.known_map(rng, 512)
    marked = np.zeros_like(photo)
    cv2.circle(marked, (300, 220), 6, (255, 255, 255), -1)
    seen = bench.retaken(marked, matrix, rng).astype(float)[..., 1]
    seen[seen < 100] = 0
    rows, columns = np.indices(seen.shape)
    middle = [(columns * seen).sum() / seen.sum(), (rows * seen).sum() / seen.sum()]
    assert np.allclose(middle, keypoints.apply_homography(matrix, np.array([[300.0, 220.0]]))[0], atol=0.5)
    assert bench.error_px(matrix, matrix, 512) == 0
    shifted = np.array([[1.0, 0, 3], [0, 1, 4], [0, 0, 1]]) @ matrix
    assert bench.error_px(shifted, matrix, 512) == pytest.approx(5 * bench.FULL / 512)


def test_known_maps_and_strangers_are_measured_and_the_peer_finds_them_too(photo, monkeypatch):
    monkeypatch.setattr(bench, "PEER_PAIRS", 1)
    known = bench.measure_known(photo, 2)
    assert known["maps"] == 2
    assert known["within 5 px"] == 1
    assert known["worst px"] < 5
    assert known["scikit-image, median px"] < 20
    assert known["scikit-image, median s"] > 0


def test_a_report_is_written_and_its_bars_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "FULL", 384)
    monkeypatch.setattr(bench, "SQUARES", 1)
    trained = bench.measure_trained(1, 1, {"S": 1, "P": 1, "A": 1})
    assert [row["method"] for row in trained["rows"]][:2] == ["SIFT", "learned"]
    assert trained["rows"][0]["mauc"] > 0.5
    known = {"within 5 px": 0.98, "silently wrong": 1}
    report = {"machine": "here", "known": known, "strangers": {"taken for one eye": 0}, "trained": trained}
    trained["rows"][1]["mauc"], trained["labels"], trained["seconds"] = trained["rows"][0]["mauc"] - 0.019, [5, 6], 1.0
    assert bench.bars(report) == ["1 silently wrong"]
    known["silently wrong"], trained["labels"] = 0, [5, 5]
    assert bench.bars(report) == ["labels 5.0 to 5.0"]
    bench.write(tmp_path, report)
    assert json.loads((tmp_path / "retina.json").read_text())["known"]["within 5 px"] == 0.98
    assert "| SIFT | 0 |" in (tmp_path / "retina.md").read_text()
    assert "MISSED" in capsys.readouterr().out
