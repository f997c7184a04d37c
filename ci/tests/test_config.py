"""DeepReg's files: what they may hold, what they build, its losses by independent formulas, and `reglib train`."""

import csv
import itertools

import folders
import numpy as np
import pytest
import torch
import yaml
from scipy import ndimage

from reglib import cli, config, train
from reglib.config import deepreg, names
from reglib.grid import Grid

LOSS = {
    "image": {"name": "lncc", "weight": 0.1, "kernel_size": 5},
    "label": {"name": "dice", "weight": 1.0, "scales": [0, 1, 2]},
    "regularization": {"name": "bending", "weight": 0.5},
}
LOCAL = {"name": "local", "num_channel_initial": 1, "extract_levels": [0, 1, 2]}


def settings(folder, kind="paired", *, labeled=True, **train_section):
    """A file's content: scans of 9 x 12 x 7 at `folder`, brought to 8^3."""
    where = {"dir": str(folder), "format": "nifti", "labeled": labeled}
    data = {"train": where, "valid": where, "test": where, "type": kind, "sample_label": "sample"}
    shapes = {"moving_image_shape": [8, 8, 8], "fixed_image_shape": [6, 6, 6]} if kind == "paired" else {}
    data |= shapes or {"image_shape": [8, 8, 8]}
    if kind == "grouped":
        data |= {"intra_group_prob": 0.7, "intra_group_option": "forward", "sample_image_in_group": True}
    section = {"method": "ddf", "backbone": LOCAL, "loss": LOSS, "epochs": 2, "save_period": 1}
    section |= {"optimizer": {"name": "Adam", "learning_rate": 1e-4}, "preprocess": {"batch_size": 2}}
    return {"dataset": data, "train": section | train_section}


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


# -- files --------------------------------------------------------------------------------------------------------
def test_later_files_win_mappings_merge_and_lists_are_replaced(tmp_path):
    first = write(tmp_path / "a.yaml", {"dataset": {"type": "paired", "x": [1, 2]}, "train": {"epochs": 3, "lr": 1}})
    second = write(tmp_path / "b.yaml", {"dataset": {"x": [3]}, "train": {"epochs": 9}})
    assert config.merged([first, second]) == {
        "dataset": {"type": "paired", "x": [3]}, "train": {"epochs": 9, "lr": 1},
    }  # fmt: skip
    assert config.merged(first)["train"]["epochs"] == 3


@pytest.mark.parametrize("written", ["1e-5", "1.0e-5", "1E-5", "0.00001"])
def test_numbers_as_people_write_them(tmp_path, written):
    (tmp_path / "a.yaml").write_text(f"learning_rate: {written}\nname: e5\nsize: 12")
    found = config.merged(tmp_path / "a.yaml")
    assert found == {"learning_rate": pytest.approx(1e-5), "name": "e5", "size": 12}


def test_a_whole_file_and_its_defaults(tmp_path):
    found = config.load(write(tmp_path / "a.yaml", settings("scans")))
    assert found.train.loss.label == [{"name": "dice", "weight": 1.0, "scales": [0, 1, 2]}]
    assert found.dataset.train.dir == "scans"
    again = config.load(write(tmp_path / "b.yaml", yaml.safe_load(config.as_yaml(found))))
    assert again == found


def test_the_layout_of_the_tutorials(tmp_path):
    content = settings("scans")
    content["dataset"] = {
        "dir": {"train": ["a", "b"], "valid": "c", "test": ""}, "format": "h5", "labeled": True, "type": "unpaired",
        "image_shape": [8, 8, 8],
    }  # fmt: skip
    found = config.load(write(tmp_path / "a.yaml", content)).dataset
    assert (found.train.dir, found.valid.dir, found.test.dir) == (["a", "b"], "c", None)
    assert (found.train.format, found.valid.labeled) == ("h5", True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["train"].update(methd="ddf"), r"no key train\.methd; do you mean 'method'\?"),
        (lambda c: c["dataset"]["train"].update(fromat="h5"), r"dataset\.train\.fromat; do you mean 'format'"),
        (lambda c: c.update(trian={}), r"no key trian; do you mean 'train'"),
        (lambda c: c["train"].pop("method"), r"train\.method is missing"),
        (
            lambda c: c["train"].update(method="svf"),
            r"train\.method: .*'ddf', 'dvf', 'conditional' or 'affine'; got 'svf'",
        ),
        (lambda c: c["dataset"].update(type="pairs"), r"dataset\.type: .*'paired', 'unpaired' or 'grouped'"),
        (lambda c: c["dataset"].pop("fixed_image_shape"), "paired data need fixed_image_shape"),
        (lambda c: c["dataset"].update(fixed_image_shape=[8]), "a shape has two or three sizes"),
        (lambda c: c["train"].update(epochs="many"), r"train\.epochs: .*integer"),
        (lambda c: c["train"]["preprocess"].update(batch_size=0), r"batch_size: .*greater than or equal to 1; got 0"),
        (lambda c: c["train"].update(backbone={"depth": 3}), "a name is needed"),
        (lambda c: c["train"].update(loss={"label": {"weight": 1}}), "each loss needs a name"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, change, words):
    content = settings("scans")
    content = yaml.safe_load(yaml.safe_dump(content))
    change(content)
    with pytest.raises(ValueError, match=words) as raised:
        config.load(write(tmp_path / "a.yaml", content))
    assert "\n" not in str(raised.value)
    assert "a.yaml" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"backbone": {"name": "Locall", "num_channel_initial": 1}},
            r"backbone must be one of .*; do you mean 'local'\?",
        ),
        ({"backbone": {**LOCAL, "colour": 3}}, "backbone local does not take these options: .*colour"),
        ({"backbone": {**LOCAL, "depth": 1}}, "depth must be at least the largest of extract_levels"),
        ({"loss": {"image": {"name": "lcc"}}}, r"image loss must be one of .*; do you mean '[lg]ncc'"),
        ({"loss": {"image": {"name": "ssd", "weight": 0}}}, "needs a loss that applies"),
        ({"method": "conditional", "loss": {"image": {"name": "ssd"}}}, "needs a loss that applies"),
        ({"method": "affine"}, "affine needs the backbone global"),
        ({"method": "dvf", "backbone": {"name": "global", "num_channel_initial": 1}}, "predicts an affine map"),
        ({"optimizer": {"name": "Adamm"}}, "optimizer must be one of .*; do you mean 'adam"),
    ],
)
def test_names_and_options_that_do_not_fit(tmp_path, change, words):
    found = config.load(write(tmp_path / "a.yaml", settings("scans", **change)))
    with pytest.raises(ValueError, match=words):
        config.build(found)


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        config.load(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2")
    with pytest.raises(ValueError, match="holds list"):
        config.load(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1, 2")
    with pytest.raises(ValueError, match="must be YAML"):
        config.load(tmp_path / "bad.yaml")
    (tmp_path / "code.yaml").write_text("a: !!python/object/apply:os.system ['touch stolen']")
    with pytest.raises(ValueError, match="must be YAML"):
        config.load(tmp_path / "code.yaml")


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "sgd", "sgd": {"learning_rate": 0.25, "momentum": 0.5}},
        {"name": "SGD", "learning_rate": 0.25, "momentum": 0.5},
        {"name": "sgd", "lr": 0.25, "momentum": 0.5},
    ],
)
def test_optimizers_in_keras_spelling(tmp_path, optimizer):
    made = config.build(config.load(write(tmp_path / "a.yaml", settings("scans", optimizer=optimizer))))
    group = made.optimizer(made.network.parameters()).param_groups[0]
    assert (group["lr"], group["momentum"]) == (0.25, 0.5)
    adam = {"name": "Adam", "learning_rate": 0.5, "beta_1": 0.7, "epsilon": 1e-3}
    made = config.build(config.load(write(tmp_path / "a.yaml", settings("scans", optimizer=adam))))
    group = made.optimizer(made.network.parameters()).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.7, 0.999), 1e-3)


def test_losses_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from reglib import config\n\n"
        "@config.register('image loss', 'cube')\n"
        "def cube(warped, fixed, *, power=3):\n"
        "    return ((warped - fixed).abs() ** power).mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        names.load_modules(["mine"])
        found = config.load(write(tmp_path / "a.yaml", settings("x", loss={"image": {"name": "cube", "power": 2}})))
        config.build(found)
    finally:
        names.TABLE["image loss"].pop("cube", None)
    with pytest.raises(ValueError, match="no_such_module cannot be imported"):
        names.load_modules(["no_such_module"])
    with pytest.raises(ValueError, match="already"):
        config.register("image loss", "ssd")
    with pytest.raises(ValueError, match="kind must be one of"):
        config.register("loss", "mine")


# -- DeepReg's losses by numpy and scipy ------------------------------------------------------------------------------
def pair(shape=(9, 8, 7), batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((batch, 1, *shape)), rng.random((batch, 1, *shape))


def same(loss, expected, *arrays, **options):
    found = float(loss(*(torch.from_numpy(x) for x in arrays), **options))
    assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("kind", ["rectangular", "triangular", "gaussian"])
def test_lncc_as_deepreg_has_it(kind):
    w, f = pair()
    size = 5
    line = {"rectangular": np.ones(5), "triangular": np.array([1.0, 2, 3, 2, 1])}.get(kind)
    if line is None:
        line = np.exp(-((np.arange(5) - 2.0) ** 2) / (2 * (5 / 3) ** 2))
    cube = line[:, None, None] * line[:, None] * line

    def total(x):
        return np.stack([ndimage.correlate(each[0], cube, mode="constant")[None] for each in x])

    v = cube.sum()
    cross = total(w * f) - total(w) * total(f) / v
    var_w, var_f = (np.maximum(total(x * x) - total(x) ** 2 / v, 0) for x in (w, f))
    same(deepreg.lncc, -np.mean((cross**2 + 1e-5) / (var_w * var_f + 1e-5)), w, f, kernel_size=size, kernel_type=kind)


def test_lncc_of_nine_and_what_it_refuses():
    w, f = pair((12, 12, 12), batch=1)
    assert float(deepreg.lncc(torch.from_numpy(w), torch.from_numpy(w))) == pytest.approx(-1, abs=1e-3)
    assert float(deepreg.lncc(torch.ones(1, 1, 9, 9, 9), torch.ones(1, 1, 9, 9, 9))) <= -0.03  # flat windows are alike
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        deepreg.lncc(torch.from_numpy(w), torch.from_numpy(f), kernel_size=4)
    with pytest.raises(ValueError, match="kernel_type"):
        deepreg.lncc(torch.from_numpy(w), torch.from_numpy(f), kernel_type="cauchy")


def test_global_correlation_and_information():
    w, f = pair()
    scores = []
    for a, b in zip(w.reshape(2, -1), f.reshape(2, -1), strict=True):
        covariance = np.mean((a - a.mean()) * (b - b.mean()))
        scores.append((covariance**2 + 1e-5) / (a.var() * b.var() + 1e-5))
    same(deepreg.gncc, -np.mean(scores), w, f)
    f = np.clip(w + 0.1 * f, -0.1, 1.1)
    centers, values = np.linspace(0, 1, 23), []
    for a, b in zip(w.reshape(2, -1), f.reshape(2, -1), strict=True):
        weights = []
        for x in (a, b):
            each = np.exp(-((np.clip(x, 0, 1)[:, None] - centers) ** 2) / (2 * (0.5 / 22) ** 2))
            weights.append(each / each.sum(1, keepdims=True))
        joint = np.einsum("ni,nj->ij", *weights) / len(a)
        product = weights[0].mean(0)[:, None] * weights[1].mean(0)
        values.append(np.sum(joint * np.log((joint + 1e-5) / (product + 1e-5) + 1e-5)))
    same(deepreg.gmi, -np.mean(values), w, f)


@pytest.mark.parametrize("background", [0.0, 0.3])
@pytest.mark.parametrize("binary", [False, True])
def test_overlap_and_entropy(background, binary):
    w, f = pair()
    hard = [(x >= 0.5).astype(float) if binary else x for x in (w, f)]
    a, b = (x.reshape(2, -1) for x in hard)
    inside, outside = (a * b).sum(1), ((1 - a) * (1 - b)).sum(1)
    both = (1 - background) * inside + background * outside
    total = (1 - background) * (a.sum(1) + b.sum(1)) + background * ((1 - a).sum(1) + (1 - b).sum(1))
    options = {"binary": binary, "background_weight": background}
    same(deepreg.dice, -np.mean((2 * both + 1e-5) / (total + 1e-5)), w, f, **options)
    if background == 0:
        union = a.sum(1) + b.sum(1) - inside
        same(deepreg.jaccard, -np.mean((inside + 1e-5) / (union + 1e-5)), w, f, **options)
    entropy = -(1 - background) * np.mean(b * np.log(a + 1e-5)) - background * np.mean((1 - b) * np.log(1 - a + 1e-5))
    same(deepreg.cross_entropy, entropy, w, f, **options)
    same(deepreg.ssd, np.mean((w - f) ** 2), w, f)


def test_fields_nested_and_inner():
    u = np.random.default_rng(0).standard_normal((2, 3, 8, 7, 9))

    def slope(x, axis):
        return (np.roll(x, -1, axis) - np.roll(x, 1, axis)) / 2

    def inner(x, n):
        return x[:, :, n:-n, n:-n, n:-n]

    slopes = [inner(slope(u, k), 1) for k in (2, 3, 4)]
    same(deepreg.gradient, np.mean(sum(s**2 for s in slopes)), u)
    same(deepreg.gradient, np.mean(sum(np.abs(s) for s in slopes)), u, l1=True)
    seconds = [slope(slope(u, j), k) for j, k in itertools.product((2, 3, 4), repeat=2)]
    same(deepreg.bending, np.mean(sum(inner(s, 2) ** 2 for s in seconds)), u)
    with pytest.raises(ValueError, match="a bend 5"):
        deepreg.bending(torch.zeros(1, 3, 4, 4, 4))


# -- trained ------------------------------------------------------------------------------------------------------
def make_scans(folder, kind):
    grid = Grid((9, 12, 7))
    if kind == "paired":
        return folders.paired(folder, 4, grid=grid)
    if kind == "grouped":
        for k in range(6):
            folders.save_scan(folder, f"group{k // 3}/scan{k}", k, grid=grid)
        return folder
    return folders.unpaired(folder, 5, grid=grid)


VARIANTS = {
    "lists of losses": {"loss": {**LOSS, "image": [{"name": "ssd", "weight": 0.5}, {"name": "gmi"}]}},
    "velocity": {"method": "dvf"},
    "unet": {"backbone": {"name": "unet", "num_channel_initial": 1, "depth": 2, "pooling": False, "concat_skip": True}},
    "global": {"backbone": {"name": "global", "num_channel_initial": 1, "depth": 3}},
    "affine": {"method": "affine", "backbone": {"name": "global", "num_channel_initial": 1, "extract_levels": [0, 2]}},
    "conditional": {"method": "conditional"},
    "splines": {"backbone": {**LOCAL, "control_points": 3}},
    "augmented": {"preprocess": {"batch_size": 2, "data_augmentation": [{"name": "affine"}, {"name": "ddf"}]}},
}


@pytest.mark.parametrize("kind", ["paired", "unpaired", "grouped"])
@pytest.mark.parametrize("variant", ["plain", *VARIANTS])
def test_every_method_is_trained_from_a_file(tmp_path, kind, variant, capsys):
    content = settings(make_scans(tmp_path / "scans", kind), kind, **VARIANTS.get(variant, {}))
    write(tmp_path / "a.yaml", {"dataset": content["dataset"]})
    write(tmp_path / "b.yaml", {"train": content["train"]})
    words = ["train", "--gpu", "", "-gr", "--config_path", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
    words += ["--log_dir", str(tmp_path / "logs"), "--exp_name", "test", "--num_workers", "0"]
    assert cli.main(words) == 0, capsys.readouterr().err
    run = tmp_path / "logs" / "test"
    assert sorted(p.name for p in (run / "save").iterdir()) == ["epoch-000001.pt", "epoch-000002.pt"]
    assert config.load(run / "config.yaml").train.epochs == 2
    with (run / "history.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2
    assert all(np.isfinite(float(value)) for line in lines for value in line.values())
    expected = {"label/dice"} if variant == "conditional" else {"label/dice", "regularization/bending"}
    assert expected <= set(lines[0])
    words = ["predict", "--gpu", "", "--ckpt_path", str(run / "save" / "epoch-000002.pt"), "--split", "test"]
    words += ["--log_dir", str(tmp_path / "logs"), "--exp_name", "seen", "--batch_size", "2", "--no_png"]
    assert cli.main(words) == 0, capsys.readouterr().err
    check_prediction(tmp_path / "logs" / "seen" / "test", kind, variant)


@pytest.mark.parametrize(("level", "said"), [("INFO", "epoch 2 of 2"), ("1", "loss"), ("", "")])
def test_a_training_tells_as_much_as_it_is_asked_to(tmp_path, level, said, capsys, monkeypatch):
    if level:
        monkeypatch.setenv("REGLIB_LOG_LEVEL", level)
    path = write(tmp_path / "a.yaml", settings(make_scans(tmp_path / "scans", "paired"), "paired"))
    words = ["train", "-c", str(path), "--log-dir", str(tmp_path), "-n", "run", "--device", "cpu"]
    assert cli.main(words) == 0
    told = capsys.readouterr().err
    assert said in told if level else not told
    assert told.count("\n") == {"INFO": 2, "1": 6}.get(level, 0)  # an epoch, and in detail a batch
    assert cli.main(["predict", "-k", str(tmp_path / "run" / "best.pt"), "--log-dir", str(tmp_path), "-n", "seen"]) == 0
    assert (" onto " in capsys.readouterr().err) == bool(level)


def test_a_level_that_does_not_exist_is_said(capsys, monkeypatch):
    monkeypatch.setenv("REGLIB_LOG_LEVEL", "loud")
    assert cli.main(["doctor", "x.nii.gz"]) == 2
    assert "REGLIB_LOG_LEVEL must be DEBUG, INFO" in capsys.readouterr().err


def check_prediction(out, kind, variant):
    """The manual's files, with finite values."""
    with (out / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    folders_ = sorted(p.name for p in out.iterdir() if p.is_dir())
    assert folders_ == sorted({f"pair_{line['pair_index']}" for line in lines})
    assert len(folders_[0].split("_")) == {"paired": 2, "unpaired": 3, "grouped": 5}[kind]
    assert {line["label_index"] for line in lines} == {"0", "1"}
    assert len(lines) == 2 * len(folders_)
    names = {"moving_image", "fixed_image"} | (set() if variant == "conditional" else {"pred_fixed_image", "ddf"})
    names |= {"dvf"} if variant == "velocity" else set()
    for folder in (out / name for name in folders_):
        assert {p.name.removesuffix(".nii.gz") for p in folder.glob("*.nii.gz")} == names
        assert (folder / "affine.txt").is_file() == (variant in ("global", "affine"))
        for k in (0, 1):
            assert {p.name.removesuffix(".nii.gz") for p in (folder / f"label_{k}").iterdir()} == {
                "moving_label", "fixed_label", "pred_fixed_label",
            }  # fmt: skip
    columns = {"label_binary_dice", "pair_index", "label_index"}
    columns |= set() if variant == "conditional" else {"image_ssd", "folding_fraction"}
    assert columns <= set(lines[0])
    assert all(np.isfinite(float(line["label_binary_dice"])) for line in lines)
    with (out / "metrics_stats_per_label.csv").open() as file:
        stats = list(csv.DictReader(file))
    assert [line["label_index"] for line in stats] == ["0", "1"]
    dice = [float(line["label_binary_dice"]) for line in lines if line["label_index"] == "0"]
    assert float(stats[0]["label_binary_dice_mean"]) == pytest.approx(np.mean(dice))
    with (out / "metrics_stats_overall.csv").open() as file:
        overall = {line[""]: line for line in csv.DictReader(file)}
    assert float(overall["count"]["label_binary_dice"]) == len(lines)
    assert {"mean", "std", "min", "50%", "max"} <= set(overall)


def test_labels_that_are_not_there_are_not_asked_for(tmp_path):
    content = settings(make_scans(tmp_path / "scans", "unpaired"), "unpaired", labeled=False)
    made = config.build(config.load(write(tmp_path / "a.yaml", content)))
    batch = train.Batch(next(iter(made.batches("train"))))
    assert "fixed_label" not in batch
    assert set(made.objective(batch, train.ask(made.network, batch))) == {"image/lncc", "regularization/bending"}


def test_what_train_says_of_bad_input(tmp_path, capsys):
    path = write(tmp_path / "a.yaml", settings(tmp_path / "nowhere"))
    assert cli.main(["train", "-c", str(path), "--log-dir", str(tmp_path / "logs")]) == 2
    error = capsys.readouterr().err
    assert "does not exist" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "logs").exists()
    content = settings(make_scans(tmp_path / "scans", "unpaired"), "unpaired", epochs=1)
    content["dataset"]["test"] = {"dir": ""}
    path = write(tmp_path / "c.yaml", content)
    words = ["--log-dir", str(tmp_path / "logs"), "-n", "run", "--device", "cpu"]
    content["dataset"]["train"] = {"dir": ""}
    assert cli.main(["train", "-c", str(write(tmp_path / "d.yaml", content)), *words]) == 2
    assert "nothing to train on" in capsys.readouterr().err
    assert cli.main(["train", "-c", str(path), *words]) == 0
    assert cli.main(["predict", "-k", str(tmp_path / "logs" / "run" / "best.pt"), *words]) == 2
    assert "nothing to predict" in capsys.readouterr().err
    for given, said in (({"name": "flip"}, "must be one of affine, ddf"), ({"name": "affine", "x": 1}, "not take x")):
        content = settings(tmp_path / "scans", "unpaired", preprocess={"data_augmentation": given})
        assert cli.main(["train", "-c", str(write(tmp_path / "e.yaml", content)), *words, "-n", "other"]) == 2
        assert said in capsys.readouterr().err
    path = write(tmp_path / "b.yaml", settings(tmp_path / "nowhere", epoch=3))
    assert cli.main(["train", "-c", str(path)]) == 2
    assert "do you mean 'epochs'?" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["paired", "unpaired", "grouped"])
@pytest.mark.parametrize("method", ["ddf", "dvf", "conditional", "global", "unlabeled"])
def test_real_scans_in_deepregs_layout(real_data, tmp_path, kind, method):
    where = real_data / "deepreg_layout" / "nifti" / kind
    content = settings(where / "train", kind, labeled=method != "unlabeled")
    content["dataset"]["valid"] = content["dataset"]["test"] = {"dir": str(where / "test"), "labeled": True}
    size = {"moving_image_shape": [16] * 3, "fixed_image_shape": [8] * 3}
    content["dataset"] |= size if kind == "paired" else {"image_shape": [16] * 3}
    if kind == "grouped":
        content["dataset"]["intra_group_prob"] = 1  # there is one group to test
    content["train"]["backbone"] = {**LOCAL, "extract_levels": [0, 1, 2, 3, 4]}
    content["train"]["method"] = method if method in ("dvf", "conditional") else "ddf"
    if method == "global":
        content["train"]["backbone"] = {"name": "global", "num_channel_initial": 1, "depth": 4}
    words = ["train", "-c", str(write(tmp_path / "a.yaml", content)), "--log-dir", str(tmp_path), "-n", "run"]
    assert cli.main([*words, "--max-epochs", "1", "--device", "cpu"]) == 0
    with (tmp_path / "run" / "history.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert all(np.isfinite(float(value)) for value in line.values())
    words = ["predict", "--ckpt-path", str(tmp_path / "run" / "best.pt"), "--log-dir", str(tmp_path), "-n", "seen"]
    assert cli.main([*words, "--device", "cpu", "--no-png"]) == 0
    assert (tmp_path / "seen" / "test" / "metrics.csv").is_file()
