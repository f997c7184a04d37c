"""Training: what it learns, what it writes, and that a run that was stopped ends as one that was not."""

import csv
import itertools
import os
import subprocess
import sys

import folders
import numpy as np
import pytest
import torch
from helpers import largest, smooth_image

from reglib import data, field, losses, networks, train
from reglib.grid import Grid

ROOT = folders.Path(__file__).parents[2]
SMALL = {"encoder": (4,), "decoder": (4,), "final": (4,)}


def network(**more):
    torch.manual_seed(0)
    return networks.voxelmorph(2, **SMALL, **more)


def objective(batch, prediction):
    moved = train.warped(batch, prediction)
    return {"mse": losses.mse_loss(moved, batch["fixed"]), "smooth": 0.01 * losses.diffusion_loss(prediction.ddf)}


@pytest.fixture
def pairs(tmp_path):
    """Six 2-D scans with labels, in a folder."""
    grid = Grid((16, 12))
    for k in range(6):
        folders.save_scan(tmp_path / "scans", f"case{k}", k, grid=grid)
    return data.UnpairedDataset(data.find(tmp_path / "scans"), labels="all")


def batches(pairs, **more):
    return data.loader(pairs, **({"batch_size": 1} | more))


# -- the loop -----------------------------------------------------------------------------------------------------
def test_a_training_learns_and_writes_what_it_noted(pairs, tmp_path):
    out = tmp_path / "run"
    made = network()
    held_out = data.UnpairedDataset(pairs.found, split="valid")
    history = train.fit(
        made,
        batches(pairs),
        objective,
        epochs=8,
        out=out,
        valid=batches(held_out),
        lr=5e-3,
        save_every=3,
        progress=False,
    )
    losses_ = history.values("loss")
    assert history.values("valid_loss")[-1] < history.values("valid_loss")[0]
    assert history.values("epoch") == list(range(1, 9))
    for record in history.records:
        assert record["loss"] == pytest.approx(record["mse"] + record["smooth"], rel=1e-5)
        assert {"valid_loss", "valid_mse", "valid_dice", "valid_folding_fraction", "lr", "seconds"} <= set(record)
    assert not history.stopped
    assert sorted(p.name for p in (out / "save").iterdir()) == [f"epoch-{k:06}.pt" for k in (3, 6, 8)]
    with (out / "history.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["loss"]) for line in lines] == losses_
    assert not list(out.rglob("*.partial*"))
    best = train.load_checkpoint(out / "best.pt", network())
    assert best.epoch == history.best("valid_loss")
    assert len(history.table) == 8
    with pytest.raises(ValueError, match=r"there are epoch, .*valid_loss"):
        history.values("accuracy")


def shown_by_tensorboard(folder):
    """{column: {epoch: value}} of a folder of events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_tensorboard_shows_the_history_and_no_epoch_twice_after_a_resume(pairs, tmp_path):
    out, how = tmp_path / "run", {"valid": batches(pairs), "tensorboard": True, "progress": False}
    train.fit(network(), batches(pairs), objective, epochs=2, out=out, **how)
    history = train.fit(network(), batches(pairs), objective, epochs=3, out=out, **how)
    learned, held_out = (shown_by_tensorboard(out / "tensorboard" / split) for split in ("train", "valid"))
    assert list(learned["loss"]) == list(held_out["loss"]) == [1, 2, 3]
    assert list(learned["loss"].values()) == pytest.approx(history.values("loss"))
    assert list(held_out["dice"].values()) == pytest.approx(history.values("valid_dice"))
    assert {"mse", "smooth", "lr", "seconds"} < set(learned)


def test_tensorboard_needs_a_folder_and_the_package(pairs, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="give out="):
        train.fit(network(), batches(pairs), objective, epochs=1, tensorboard=True, progress=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'reglib\[tensorboard\]'"):
        train.fit(network(), batches(pairs), objective, epochs=1, out=tmp_path, tensorboard=True, progress=False)


def test_epochs_that_are_done_are_not_done_again(pairs, tmp_path):
    def go(epochs, **more):
        return train.fit(network(), batches(pairs), objective, epochs=epochs, lr=1e-3, progress=False, **more)

    whole = go(5).values("loss")
    assert go(2, out=tmp_path / "run").values("loss") == whole[:2]
    assert go(5, out=tmp_path / "run").values("loss") == pytest.approx(whole, abs=1e-6)
    assert go(5, out=tmp_path / "run").values("loss") == pytest.approx(whole, abs=1e-6)
    assert len(go(1, out=tmp_path / "run", resume=False).records) == 1
    assert [path.name for path in (tmp_path / "run" / "save").iterdir()] == ["epoch-000001.pt"]
    assert go(3, out=tmp_path / "run").values("loss") == pytest.approx(whole[:3], abs=1e-6)


def test_schedules_and_random_numbers_go_on_too(pairs, tmp_path):
    def noisy(batch, prediction):
        return {"mse": losses.mse_loss(train.warped(batch, prediction), batch["fixed"]) * (1 + 0.1 * torch.rand(()))}

    def go(epochs, out):
        torch.manual_seed(7)
        plan = {"scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5), "progress": False}
        return train.fit(network(), batches(pairs), noisy, epochs=epochs, out=out, lr=1e-2, **plan)

    whole = go(4, tmp_path / "a")
    go(2, tmp_path / "b")
    torch.rand(11)
    again = go(4, tmp_path / "b")
    assert again.values("loss") == pytest.approx(whole.values("loss"), abs=1e-7)
    assert again.values("lr") == pytest.approx([1e-2, 5e-3, 2.5e-3, 1.25e-3])


def test_two_batches_to_a_step_are_one_of_twice_the_size(pairs):
    def weights(**more):
        made = network()
        plan = {"epochs": 1, "optimizer": lambda p: torch.optim.SGD(p, lr=0.5), "progress": False}
        size = more.pop("batch_size")
        train.fit(made, batches(pairs, batch_size=size, drop_last=False), objective, **plan, **more)
        return torch.cat([p.detach().flatten() for p in made.parameters()])

    three = weights(batch_size=3)
    assert largest(three, weights(batch_size=1, accumulate=3)) < 1e-6
    assert largest(three, weights(batch_size=1)) > 1e-5


def test_a_shortened_gradient_moves_less(pairs):
    moved = {}
    for clip in (None, 1e-4):
        made = network()
        before = torch.cat([p.detach().flatten().clone() for p in made.parameters()])
        plan = {"epochs": 1, "optimizer": lambda p: torch.optim.SGD(p, lr=1.0), "progress": False, "clip": clip}
        train.fit(made, batches(pairs), objective, **plan)
        moved[clip] = float((torch.cat([p.detach().flatten() for p in made.parameters()]) - before).norm())
    assert moved[1e-4] <= 3 * 1e-4 * 1.01 < moved[None]


def test_patience_ends_it(pairs):
    rising = iter(range(100))

    def worse(batch, prediction):
        return {"mse": 0.0 * prediction.ddf.sum() + next(rising)}

    history = train.fit(network(), batches(pairs), worse, epochs=20, patience=3, progress=False)
    assert len(history.records) == 4
    assert "no new low in 3 epochs" in history.stopped


def test_an_interrupt_keeps_the_history(pairs, tmp_path):
    calls = []

    def interrupted(batch, prediction):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return objective(batch, prediction)

    history = train.fit(network(), batches(pairs), interrupted, epochs=9, out=tmp_path / "run", progress=False)
    assert len(history.records) == 2
    assert "interrupted in epoch 3" in history.stopped
    assert train.latest_checkpoint(tmp_path / "run" / "save").name == "epoch-000002.pt"


def test_half_precision(pairs):
    history = train.fit(
        network(), batches(pairs), objective, epochs=2, precision="bf16-mixed", device="cpu", progress=False
    )
    assert np.isfinite(history.values("loss")).all()


def test_one_pair_is_learned_by_heart(pairs):
    batch = next(iter(batches(pairs)))
    history = train.overfit_one_pair(network(), batch, objective, steps=60, lr=1e-2)
    assert history.values("mse")[-1] < 0.7 * history.values("mse")[0]


# -- stopped and gone on ------------------------------------------------------------------------------------------
KILLED = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from reglib import data, losses, networks, train
import lightning_fabric

def go(out):
    torch.manual_seed(0)
    network = networks.voxelmorph(2, encoder=(4,), decoder=(4,), final=(4,))
    pairs = data.UnpairedDataset(data.find(sys.argv[1]), cache="memory")
    def objective(batch, prediction):
        time.sleep(0.02)
        return {"mse": losses.mse_loss(train.warped(batch, prediction), batch["fixed"])}
    plan = {"lr": 1e-2, "device": "cpu", "progress": False}
    history = train.fit(network, data.loader(pairs), objective, epochs=6, out=out, **plan)
    print("LOSSES", *(repr(x) for x in history.values("loss")), flush=True)

def child(out, seconds):
    pid = os.fork()
    if pid == 0:
        go(out)
        os._exit(0)
    if seconds is None:
        return os.waitpid(pid, 0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

begin = time.perf_counter()
child(sys.argv[2] + "/whole", None)
took = time.perf_counter() - begin
random.seed(int(sys.argv[3]))
for _ in range(10):
    child(sys.argv[2] + "/killed", random.uniform(0.05, 0.45) * took)
    left = [p for p in os.listdir(sys.argv[2] + "/killed/save") if p.startswith("epoch")] if os.path.isdir(
        sys.argv[2] + "/killed/save") else []
    for name in left:
        train.load_checkpoint(sys.argv[2] + "/killed/save/" + name)
child(sys.argv[2] + "/killed", None)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_ten_times_and_gone_on_it_ends_with_the_same_losses(pairs, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    call = [sys.executable, script, tmp_path / "scans", tmp_path / "out", "5"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("LOSSES")]
    assert done.returncode == 0, done.stderr[-2000:]
    whole, killed = [float(x) for x in lines[0]], [float(x) for x in lines[-1]]
    assert len(whole) == 6
    assert killed == pytest.approx(whole, abs=1e-6)


SHARED = """
import sys
import torch
torch.set_num_threads(1)
from reglib import data, losses, networks, train

torch.manual_seed(0)
network = networks.voxelmorph(2, encoder=(4,), decoder=(4,), final=(4,))
pairs = data.UnpairedDataset(data.find(sys.argv[1]))
def objective(batch, prediction):
    return {"mse": losses.mse_loss(train.warped(batch, prediction), batch["fixed"])}
loader = data.loader(pairs, batch_size=int(sys.argv[3]))
history = train.fit(network, loader, objective, epochs=4, lr=1e-2, out=sys.argv[2], progress=False)
"""


def test_two_processes_do_what_one_does_with_twice_the_batch(tmp_path):
    for k in range(8):
        folders.save_scan(tmp_path / "scans", f"case{k}", k, grid=Grid((16, 12)))
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    losses_ = {}
    launch = [sys.executable, "-m", "lightning_fabric.cli", "--accelerator", "cpu", "--strategy", "ddp"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ways = {"one": ([sys.executable], 2), "two": ([*launch, "--devices", "2"], 1), "torchrun": (torchrun, 1)}
    for name, (start, size) in ways.items():
        call = [*start, script, tmp_path / "scans", tmp_path / name, str(size)]
        done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        with (tmp_path / name / "history.csv").open() as file:
            losses_[name] = [float(line["loss"]) for line in csv.DictReader(file)]
    for name in ("two", "torchrun"):
        assert losses_[name] == pytest.approx(losses_["one"], abs=1e-4)
    assert losses_["one"][-1] < losses_["one"][0]


# -- what a batch is worth ----------------------------------------------------------------------------------------
class Told(torch.nn.Module):
    """Says what it was told, whatever it sees."""

    def __init__(self, ddf):
        super().__init__()
        self.ddf = torch.nn.Parameter(ddf)

    def forward(self, fixed, moving, **grids):
        return networks.Prediction(ddf=self.ddf.expand(len(fixed), *self.ddf.shape[1:]))


def batch_of(fixed_grids, moving_grids, shift):
    fixed, moving = (smooth_image(grids[0].shape, seed=k) for k, grids in ((1, fixed_grids), (2, moving_grids)))
    count = len(fixed_grids)
    points = [grid.points(torch.tensor([[4.0, 4], [6, 5]]), to="world", from_="voxel") for grid in fixed_grids]
    moved = [p + torch.tensor(shift) for p in points]
    masks = torch.zeros(count, 2, *fixed_grids[0].shape)
    masks[:, 0, 3:7, 3:7] = 1
    return train.Batch(
        fixed=fixed.expand(count, 1, *fixed.shape[2:]), moving=moving.expand(count, 1, *moving.shape[2:]),
        fixed_grid=list(fixed_grids), moving_grid=list(moving_grids), fixed_points=points, moving_points=moved,
        fixed_label=masks, moving_label=masks.roll(2, 2), moving_name=["a"] * count, fixed_name=["b"] * count,
    )  # fmt: skip


def test_scores_against_what_is_known():
    grid = Grid((12, 10), torch.diag(torch.tensor([2.0, 2.0, 1.0])))
    batch = batch_of([grid, grid], [grid, grid], [4.0, 0.0])
    ddf = torch.zeros(1, 2, 12, 10)
    still = train.scores(batch, Told(ddf)(batch["fixed"], batch["moving"]))
    assert [s["tre_mm"] for s in still] == pytest.approx([4.0, 4.0])
    assert still[0]["dice"] == pytest.approx(0.5)  # the second structure is in neither
    ddf[:, 0] = 2.0
    right = train.scores(batch, Told(ddf)(batch["fixed"], batch["moving"]))
    assert right[1] == {"dice": 1.0, "tre_mm": pytest.approx(0.0), "folding_fraction": 0.0}
    found = train.evaluate(Told(ddf), [batch, batch], lambda b, p: {"half": p.ddf.mean() / 2})
    assert found["dice"] == 1.0
    assert found["loss"] == found["half"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no map"):
        train.warped(batch, networks.Prediction(label=batch["fixed_label"]))
    seen = train.scores(batch, networks.Prediction(label=batch["fixed_label"]))
    assert seen == [{"dice": 1.0}, {"dice": 1.0}]


def test_warped_through_the_world_of_each_pair():
    fixed = [Grid((12, 10)), Grid((12, 10), torch.tensor([[1.0, 0, 1], [0, 1.0, 0], [0, 0, 1]]))]
    moving = [Grid((9, 9), torch.diag(torch.tensor([1.5, 1.5, 1.0])))] * 2
    batch = batch_of(fixed, moving, [0.0, 0.0])
    prediction = Told(torch.ones(1, 2, 12, 10))(batch["fixed"], batch["moving"])
    found = train.warped(batch, prediction)
    for k in range(2):
        grids = {"fixed_grid": fixed[k], "moving_grid": moving[k]}
        one = field.warp(batch["moving"][k : k + 1], torch.ones(1, 2, 12, 10), padding="zeros", **grids)
        assert largest(found[k : k + 1].detach(), one) < 1e-6
    assert largest(found[0].detach(), found[1].detach()) > 0.01


# -- predicted ----------------------------------------------------------------------------------------------------
def test_predictions_are_written_and_measured(tmp_path):
    """A shift that is known: the images, the map, the labels and every number."""
    from PIL import Image

    from reglib import io

    grid = Grid((16, 12), torch.diag(torch.tensor([2.0, 2.0, 1.0])))
    folders.paired(tmp_path / "scans", 3, grid=grid)
    for k in (1, 2, 3):
        for role in ("moving", "fixed"):
            io.save_points(tmp_path / "scans" / f"{role}_points" / f"case{k}.csv", torch.tensor([[[4.0, 6], [8, 8]]]))
    pairs = data.PairedDataset(data.find(tmp_path / "scans"), split="test", reading=data.Reading(scale="none"))
    shift = torch.zeros(1, 2, 16, 12)
    shift[:, 0] = 1.0  # a voxel, which is 2 mm
    out = tmp_path / "out"
    table = train.predict(Told(shift), pairs, out, png=True, batch_size=2, labels="nearest", progress=False)
    assert list(table["pair_index"]) == ["0", "0", "1", "1", "2", "2"]
    assert list(table["label_index"]) == [0, 1] * 3
    assert table["point_tre"].tolist() == pytest.approx([2.0] * 6)
    assert set(table["folding_fraction"]) == {0.0}
    item = pairs[1]
    moved = field.warp(item["moving"][None], shift, padding="zeros")
    assert table["image_ssd"][2] == pytest.approx(float((moved - item["fixed"]).square().mean()), rel=1e-5)
    mask = field.warp(item["moving_label"][None, :1], shift, mode="nearest", padding="zeros")[0] > 0.5
    truth = item["fixed_label"][:1] > 0.5
    dice = 2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum())
    assert table["label_binary_dice"][2] == pytest.approx(dice, abs=1e-4)
    centers = [x[0].nonzero().double().mean(0) for x in (mask, truth)]
    assert table["label_tre"][2] == pytest.approx(2 * float((centers[0] - centers[1]).norm()), abs=1e-4)
    found, own = io.load_ddf(out / "pair_1" / "ddf.nii.gz")
    assert torch.equal(found, shift)
    assert own.is_close(grid, tolerance=1e-5)
    image, _ = io.load_image(out / "pair_1" / "pred_fixed_image.nii.gz")
    assert largest(image, moved) < 1e-6
    picture = np.asarray(Image.open(out / "pair_1" / "label_0" / "pred_fixed_label" / "depth0_pred_fixed_label.png"))
    assert picture.shape == (16, 12)
    np.testing.assert_array_equal(picture, 255 * mask[0].numpy())
    assert np.asarray(Image.open(out / "pair_1" / "ddf" / "depth0_ddf.png")).shape == (16, 12, 3)


def test_predictions_in_batches_are_those_of_one(pairs, tmp_path):
    made = network()
    torch.nn.init.normal_(made.head.reading.levels["0"].weight, 0, 0.3)
    test = data.UnpairedDataset(pairs.found, split="test")
    tables = [
        train.predict(made, test, tmp_path / str(size), batch_size=size, nifti=False, progress=False) for size in (1, 3)
    ]
    for name in ("image_ssd", "label_binary_dice"):
        assert tables[0][name].tolist() == pytest.approx(tables[1][name].tolist(), rel=1e-4)
    assert not list((tmp_path / "1").glob("pair_*"))
    bare = data.UnpairedDataset(pairs.found, split="test", labels="none")
    with pytest.raises(ValueError, match="moves labels, and the data set has none"):
        train.predict(networks.conditional(2, initial=1, levels=(0, 1)), bare, tmp_path / "no", progress=False)


# -- what does not fit --------------------------------------------------------------------------------------------
def test_what_a_batch_has_not_is_said(pairs):
    unlabeled = data.UnpairedDataset(pairs.found, labels="none")

    def labels(batch, prediction):
        return {"dice": losses.dice_loss(train.warped(batch, prediction, "moving_label"), batch["fixed_label"])}

    with pytest.raises(ValueError, match=r"asks for 'moving_label'.*Does the data set have labels"):
        train.fit(network(), batches(unlabeled), labels, epochs=1, progress=False)
    segmenting = networks.conditional(2, initial=1, levels=(0, 1))
    with pytest.raises(ValueError, match="asks for 'moving_label'"):
        train.fit(segmenting, batches(unlabeled), labels, epochs=1, progress=False)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        (lambda p: p.ddf.mean(), "must return its terms by name"),
        (lambda p: {}, "must return its terms by name"),
        (lambda p: {"mse": 1.0}, "must return its terms by name"),
        (lambda p: {"mse": p.ddf}, r"one number; mse is \(1, 2, 16, 12\)"),
    ],
)
def test_what_an_objective_must_return(pairs, terms, words):
    with pytest.raises(ValueError, match=words):
        train.fit(network(), batches(pairs), lambda _, p: terms(p), epochs=1, progress=False)


def test_divergence_is_said_with_the_names(pairs, tmp_path):
    count = []

    def breaks(batch, prediction):
        count.append(1)
        return {"mse": prediction.ddf.sum() * (float("nan") if len(count) == 5 else 0.0)}

    with pytest.raises(FloatingPointError, match=r"nan in epoch 2, at case\d -> case\d \(mse nan\)"):
        train.fit(network(), batches(pairs), breaks, epochs=3, out=tmp_path / "run", progress=False)
    assert train.latest_checkpoint(tmp_path / "run" / "save").name == "epoch-000001.pt"


def test_a_gradient_that_is_not_finite_is_said_before_the_step(pairs):
    def steep(batch, prediction):
        return {"root": (0 * prediction.ddf).sum().sqrt()}  # 0, and its slope is 0 times infinity

    net = network()
    before = [x.detach().clone() for x in net.parameters()]
    with pytest.raises(FloatingPointError, match=r"gradient became nan in epoch 1, at case\d -> case\d \(root 0\)"):
        train.fit(net, batches(pairs), steep, epochs=1, clip=1.0, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_batch_with_nan_is_named(pairs):
    batch = next(iter(batches(pairs)))
    batch["moving"][0, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"moving of case\d -> case\d holds NaN"):
        train.fit(network(), [batch], objective, epochs=1, progress=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": -1}, "at least 0"),
        ({"accumulate": 0}, "at least 1"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"patience": 0}, "patience at least 1"),
        ({"device": "tpu"}, 'device must be "auto"'),
        ({"monitor": "valid_dice"}, "monitor must be one of epoch, "),
    ],
)
def test_settings_that_do_not_fit(pairs, settings, words):
    with pytest.raises(ValueError, match=words):
        train.fit(network(), batches(pairs), objective, **({"epochs": 1, "progress": False} | settings))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(pairs):
    with pytest.raises(ValueError, match="torch finds no GPU here"):
        train.fit(network(), batches(pairs), objective, epochs=1, device="cuda", progress=False)


def test_no_batch_at_all():
    with pytest.raises(ValueError, match="no batch in an epoch"):
        train.fit(network(), [], objective, epochs=1, progress=False)


@pytest.mark.parametrize("how", ["other", "truncated", "payload", "foreign"])
def test_checkpoints_that_are_not_loaded(pairs, tmp_path, how):
    out = tmp_path / "run"
    train.fit(network(), batches(pairs), objective, epochs=1, out=out, progress=False)
    path, made, words = out / "best.pt", network(), "damaged, or holds more"
    if how == "other":
        made, words = networks.voxelmorph(2, encoder=(5,), decoder=(4,), final=(4,)), "of another network"
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    elif how == "payload":
        from test_networks import Payload

        torch.save({"version": 1, "network": Payload()}, path)
    else:
        torch.save({"model_state": {}}, path)
        words = "a checkpoint of this library"
    with pytest.raises(ValueError, match=words) as raised:
        train.load_checkpoint(path, made)
    assert str(path) in str(raised.value)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        train.load_checkpoint(out / "nothing.pt")
    if how == "other":
        with pytest.raises(ValueError, match="of another network"):
            train.fit(made, batches(pairs), objective, epochs=2, out=out, progress=False)


# -- memory -------------------------------------------------------------------------------------------------------
def peak_mb(run):
    """What the profiler saw alive at once, beyond what was there before."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    changes = [(e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(size for _, size in sorted(changes, key=lambda change: change[0]))) / 2**20


@pytest.mark.parametrize(
    ("make", "shape", "labels"),
    [
        (lambda: networks.voxelmorph(3), (56, 48, 60), 0),
        (lambda: networks.localnet(3, initial=4), (44, 48, 50), 2),
        (lambda: networks.unet(2, initial=8), (250, 300), 1),
    ],
)
def test_the_memory_of_a_step_is_foreseen(make, shape, labels):
    def alike(batch, prediction):
        terms = {"lncc": losses.lncc_loss(train.warped(batch, prediction), batch["fixed"])}
        if labels:
            moved = train.warped(batch, prediction, "moving_label")
            terms["dice"] = losses.dice_loss(moved.clamp(0, 1), batch["fixed_label"])
        return terms

    torch.manual_seed(0)
    network = make()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    planned = train.estimate_memory(network, alike, shape, batch_size=2, labels=labels)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    batch = {f"{role}{kind}": torch.rand(2, n, *shape) for role in ("fixed", "moving") for kind, n in sides(labels)}
    fixed_bytes = sum(x.numel() * 4 for x in batch.values()) / 2**20 + planned.weights * 3 / 4

    def step():
        network.zero_grad()
        sum(alike(train.Batch(batch), train.ask(network, train.Batch(batch))).values()).backward()

    def look():
        with torch.no_grad():
            train.ask(network, train.Batch(batch))

    assert planned.step == pytest.approx(peak_mb(step) + fixed_bytes, rel=0.2)
    assert planned.predict == pytest.approx(peak_mb(look) + fixed_bytes, rel=0.2)
    assert train.estimate_memory(network, alike, shape, labels=labels).step < 0.6 * planned.step


def sides(labels):
    return [("", 1), ("_label", labels)] if labels else [("", 1)]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")]
)
def test_lack_of_memory_is_one_sentence(pairs, error):
    def greedy(batch, prediction):
        raise error

    with pytest.raises(MemoryError, match=r"out of memory in epoch 1, at .* -> .*; halve the batch size, .*bf16"):
        train.fit(network(), batches(pairs), greedy, epochs=1, progress=False)

    def wrong(batch, prediction):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        train.fit(network(), batches(pairs), wrong, epochs=1, progress=False)


def test_a_network_too_deep_for_small_probes_is_planned_too():
    deep = networks.unet(2, initial=1, depth=8)
    planned = train.estimate_memory(deep, lambda batch, found: {"far": found.ddf.square().mean()}, (512, 512))
    assert 0 < planned.predict <= planned.step


def test_a_plan_is_for_one_dimension():
    with pytest.raises(ValueError, match=r"shape must be 3 sizes of at least 1.*got \(64, 64\)"):
        train.estimate_memory(networks.voxelmorph(3), objective, (64, 64))
