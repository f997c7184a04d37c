"""The benchmark of the losses: what it measures and what it says of a bar; no time is asserted."""

import json

import torch

from bench import losses as bench

CPU = torch.device("cpu")


def test_peak_memory_is_what_is_alive_at_once(capfd):
    def run():
        first = torch.ones(1000, 1000)  # 4 MB
        second = first + 1
        del first
        return second + second

    assert 8.0 <= bench.peak_mb(run, CPU) < 8.2
    assert capfd.readouterr().err == ""


def row(case, size, package, seconds, mb=100.0):
    return bench.Row(case, size, package, seconds / 2, seconds, mb)


def test_a_bar_is_held_or_missed_by_the_ratio():
    name = "lncc, window 9"
    rows = [row(name, "large", "reglib", 0.1, 40.0), row(name, "large", "MONAI", 1.6, 100.0)]
    lines, held = bench.bar_lines(rows)
    assert held
    assert [line.split(":")[0] for line in lines] == ["held", "held"]
    assert "16.0 times the time" in lines[0]
    rows[1].both_s = 1.4
    lines, held = bench.bar_lines(rows)
    assert not held
    assert lines[0].startswith("MISSED: lncc, window 9, large: MONAI takes 14.0 times")


def test_a_wide_window_may_not_take_much_longer():
    rows = [row("lncc, window 5", "large", "reglib", 0.1), row("lncc, window 21", "large", "reglib", 0.14)]
    assert bench.bar_lines(rows)[1] is False
    rows[1].both_s = 0.12
    assert bench.bar_lines(rows)[1] is True


def test_every_bar_names_a_case_that_exists_and_results_are_written(tmp_path, monkeypatch):
    """All cases run on a tiny volume; a failing one would be a row with a note."""
    monkeypatch.setitem(bench.SIZES, "small", (20, 18, 22))
    monkeypatch.setattr(bench, "REPEATS", 1)
    rows = bench.run_all(["small"], [], CPU)
    failed = [r for r in rows if r.note.startswith("failed") and r.package != "deepali"]
    assert failed == []
    measured = {(r.case, r.package) for r in rows if r.both_s is not None}
    assert {(bar.case, "reglib") for bar in bench.BARS} <= measured
    assert {(bar.case, bar.package) for bar in bench.BARS} <= measured
    assert {(case, "reglib") for case in bench.WIDE[:2]} <= measured
    lines, _ = bench.bar_lines(rows)
    bench.write(tmp_path, rows, bench.machine_of(CPU), lines)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["losses.json", "losses.md", "losses.png"]
    stored = json.loads((tmp_path / "losses.json").read_text())
    assert len(stored["rows"]) == len(rows)
    assert "| small | bending | reglib |" in (tmp_path / "losses.md").read_text()
