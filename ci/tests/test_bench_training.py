"""The benchmark of training: what it measures and writes, and that its VoxelMorph is the one whose weights we load."""

import json

import torch
from helpers import largest, smooth_image

from bench import training as bench
from reglib import networks


def test_every_package_is_measured_and_written(tmp_path, capsys):
    assert bench.main(["--size", "16", "16", "16", "--threads", "1", "-o", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "training.json").read_text())
    assert [row["package"] for row in report["rows"]] == list(bench.PACKAGES)
    assert all(row["step_s"] > 0 and row["predict_s"] > 0 for row in report["rows"])
    assert "| MONAI |" in (tmp_path / "training.md").read_text()
    assert "times as fast as VoxelMorph" in capsys.readouterr().out


def test_the_peer_is_the_network_whose_weights_we_load(tmp_path):
    torch.manual_seed(0)
    theirs = bench.VoxelMorph((16, 16, 16))
    torch.nn.init.normal_(theirs.flow.weight, 0, 0.2)
    state = {k: v for k, v in theirs.state_dict().items() if not k.endswith("grid")}
    torch.save({"config": {"int_steps": 7, "int_downsize": 2}, "model_state": state}, tmp_path / "vxm.pt")
    ours = networks.load_voxelmorph(tmp_path / "vxm.pt")
    fixed, moving = (smooth_image((16, 16, 16), seed=k) for k in (0, 1))
    with torch.no_grad():
        _, velocity, ddf = theirs(moving, fixed)
        found = ours(fixed, moving)
    assert float(ddf.abs().max()) > 0.1
    assert largest(found.velocity, velocity) < 1e-4
    assert largest(found.ddf, ddf) < 1e-4
