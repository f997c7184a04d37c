"""`python -m data_scripts.NAME --make`: valid by `reglib data inspect`, small and true."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import folders
import numpy as np
import pytest
import torch

from reglib import cli, data, field, io, keypoints, metrics

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from data_scripts.script import manifest  # noqa: E402

SOURCES = manifest()
PHOTOGRAPHS = [name for name, source in SOURCES.items() if source.kind == "retina"]
SCANS = [name for name in SOURCES if name not in PHOTOGRAPHS]
MOST_MB = 300
WITHIN_VOXELS = {"lung_ct": 0.2, "nlst": 0.2, "popi": 0.2}  # of the landmarks; 0.05 elsewhere


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a stand-in by name, made when first asked for."""
    folder = tmp_path_factory.mktemp("standins")

    def make(name):
        if not (folder / name).exists():
            call = [sys.executable, "-W", "error", "-m", f"data_scripts.{name}", "--make", "--out", folder / name]
            done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert "stand-in" in done.stdout
        return folder / name

    return make


def test_every_name_is_an_identifier_with_its_script():
    shared = {"__init__", "script", "standins", "fetch", "arranging"}
    assert set(SOURCES) == {p.stem for p in (ROOT / "data_scripts").glob("*.py")} - shared
    for name, source in SOURCES.items():
        assert name.isidentifier()
        assert import_module(f"data_scripts.{name}").__doc__
        assert source.kind in ("paired", "unpaired", "grouped", "retina")
        assert source.files or source.manual
        for file in source.files:
            assert file["url"].startswith("https://")
            assert file["checksum"] is None or file["checksum"].partition(":")[0] in ("sha256", "md5")


@pytest.mark.parametrize("name", SCANS)
def test_a_stand_in_is_valid_small_and_true(made, name):
    out = made(name)
    assert sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) < MOST_MB * 1e6
    assert "stand-in" in (out / "STANDIN.txt").read_text()
    found = data.inspect(out)
    assert found.ok, found.faults
    assert set(found.kinds.values()) == {SOURCES[name].kind}
    counts = {int(n) for n in found.table["labels"].dropna()}
    assert counts == ({len(SOURCES[name].labels)} if SOURCES[name].labels else set())
    limit = WITHIN_VOXELS.get(name, 0.05)
    for split in found.kinds:
        records = data.find(out / split).records
        truth = out / "truth" / split
        errors = errors_of_pairs(truth, records) if SOURCES[name].kind == "paired" else errors_of_scans(truth, records)
        assert len(errors) > 0
        assert max(errors) < limit


def load(path):
    ddf, grid = io.load_ddf(path)
    return ddf.double(), grid


def carried(points, ddf, grid):
    """World points (n, d) under a ddf of a grid."""
    voxels = grid.points(points, to="voxel", from_="world")[None]
    return grid.points(field.warp_points(voxels, ddf)[0], to="world", from_="voxel"), grid


def inside(points, grid, *, margin=1.0):
    voxels = grid.points(points, to="voxel", from_="world")
    return ((voxels > margin) & (voxels < torch.tensor(grid.shape) - 1 - margin)).all(1)


def errors_of_pairs(truth, records):
    """Landmarks, which no field was needed for, against both fields, in voxels."""
    errors = []
    for record in records:
        ddf, grid = load(truth / f"{record.name}_ddf.nii.gz")
        back, moving_grid = load(truth / f"{record.name}_inverse_ddf.nii.gz")
        fixed, moving = (io.load_points(truth / f"{record.name}_{role}_points.csv")[0] for role in ("fixed", "moving"))
        for start, end, map_, own in ((fixed, moving, ddf, grid), (moving, fixed, back, moving_grid)):
            kept = inside(start, own)
            assert kept.float().mean() > 0.8
            found, _ = carried(start[kept], map_, own)
            errors.append(float((found - end[kept]).norm(dim=1).max()) / max(own.spacing))
    return errors


def errors_of_scans(truth, records):
    """From one scan of a group to the next through the template, in voxels."""
    errors = []
    by_group = {}
    for record in records:
        by_group.setdefault(record.group, []).append(record)
    for group in by_group.values():
        for first, second in zip(group, [*group[1:], group[0]], strict=True):
            start, end = (io.load_points(truth / f"{r.name}_points.csv")[0] for r in (first, second))
            there, grid = load(truth / f"{first.name}_template_from_scan.nii.gz")
            back, other = load(truth / f"{second.name}_scan_from_template.nii.gz")
            on_template, _ = carried(start, there, grid)
            kept = inside(start, grid) & inside(on_template, other)
            assert kept.float().mean() > 0.6
            found, _ = carried(on_template[kept], back, other)
            errors.append(float((found - end[kept]).norm(dim=1).max()) / max(grid.spacing))
    return errors


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_stand_in_photographs_are_small_and_in_their_layout(made, name):
    out = made(name)
    assert sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) < MOST_MB * 1e6
    assert "stand-in" in (out / "STANDIN.txt").read_text()
    if name == "fire":
        pairs = list(keypoints.fire_pairs(out))
        assert [pair.category for pair in pairs] == ["A"] * 2 + ["P"] * 2 + ["S"] * 3
        assert min(len(pair.query_points) for pair in pairs) >= 6
        assert keypoints.load_photo(pairs[0].query).shape == (1456, 1456, 3)
    elif name == "varia":
        pairs = keypoints.varia_pairs(out)
        assert (len(pairs), sum(same for *_, same in pairs)) == (66, 6)
    else:
        lessons = keypoints.load_lessons(out / "Lab", split="train.txt", auxiliary=out / "Auxiliary", size=256)
        assert [lesson.points is None for lesson in lessons] == [False] * 8 + [True] * 4
        assert min(len(lesson.points) for lesson in lessons[:8]) > 20


def test_control_points_of_the_stand_in_are_of_one_place(made):
    """The photographs look alike around them once one is laid on the other."""
    pair = next(p for p in keypoints.fire_pairs(made("fire")) if p.category == "S")
    query, reference = (keypoints.load_photo(path)[..., 1].astype(float) for path in (pair.query, pair.reference))
    alike = []
    for a, b in zip(pair.query_points.round().astype(int), pair.reference_points.round().astype(int), strict=True):
        patches = [x[p[1] - 12 : p[1] + 13, p[0] - 12 : p[0] + 13].ravel() for x, p in ((query, a), (reference, b))]
        alike.append(np.corrcoef(*patches)[0, 1])
    assert np.median(alike) > 0.85


def test_labels_follow_the_truth(made):
    """The moving lungs under the true map are the fixed ones, and the images grow alike."""
    out = made("lung_ct")
    for record in data.find(out / "train").records:
        sides = [str(record.image.path), str(record.image.path).replace("moving_images", "fixed_images")]
        (moving, moving_grid), (fixed, fixed_grid) = (io.load_image(path) for path in sides)
        lungs = [io.load_labels(path.replace("images", "labels"))[0] for path in sides]
        ddf, _ = io.load_ddf(out / "truth" / "train" / f"{record.name}_ddf.nii.gz")
        grids = {"moving_grid": moving_grid, "fixed_grid": fixed_grid}
        overlaps, apart = [], []
        for u in (torch.zeros_like(ddf), ddf):
            warped = field.warp_labels(lungs[0], u, method="linear", **grids)
            overlaps.append(float(metrics.dice(warped, lungs[1], labels=[1])[1]))
            apart.append(float((field.warp(moving, u, padding=-1000.0, **grids) - fixed).abs().mean()))
        assert overlaps[1] > 0.98 > overlaps[0]
        assert apart[1] < 0.6 * apart[0]


def test_the_same_bytes_again(made, tmp_path):
    out = made("mnist")
    call = [sys.executable, "-m", "data_scripts.mnist", "--make", "--out", tmp_path / "again"]
    subprocess.run(call, cwd=ROOT, check=True, capture_output=True)
    files = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    assert files
    for file in files:
        assert (out / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_nothing_is_overwritten_and_nothing_half_done_is_left(tmp_path, capsys, monkeypatch):
    from data_scripts import hippocampus_mr
    from data_scripts.script import run

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert run("hippocampus_mr", hippocampus_mr.make, words=["--make", "--out", str(tmp_path / "full")]) == 2
    assert "is there already" in capsys.readouterr().err

    def breaks(out, source):
        (out / "half").write_text("half")
        raise ValueError("the disk is full")

    assert run("hippocampus_mr", breaks, words=["--make", "--out", str(tmp_path / "new")]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


@pytest.mark.parametrize("name", ["myops", "promise12", "fire"])
def test_what_no_script_may_download_is_said(tmp_path, name, capsys):
    from data_scripts.script import run

    module = import_module(f"data_scripts.{name}")
    assert run(name, module.make, words=["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert SOURCES[name].manual in error
    assert "--make" in error
    assert not (tmp_path / "out").exists()


def test_a_stand_in_can_be_trained_on(made):
    """A batch of each kind, as a network gets it."""
    pairs = data.PairedDataset(data.find(made("prostate_mrus") / "train"), onto_fixed=True)
    scans = data.UnpairedDataset(data.find(made("oasis_2d") / "train"), reading=data.Reading(multiple=16))
    groups = data.GroupedDataset(data.find(made("myops") / "train"), intra_group_prob=0.7)
    for dataset in (pairs, scans, groups):
        batch = next(iter(data.loader(dataset, batch_size=2)))
        assert batch["moving"].shape == batch["fixed"].shape
        assert batch["fixed_label"].shape[:2] == (2, 1)
        assert np.isfinite(batch["moving"].numpy()).all()


# -- what publishers give, in our layout -------------------------------------------
def theirs(path, number, *, labels=()):
    """A scan as a publisher has it: an image, or a label map of these labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not labels:
        io.save_image(path, folders.image_of(number), folders.GRID)
        return
    whole = torch.zeros(1, 1, *folders.GRID.shape, dtype=torch.int64)
    for k, value in enumerate(labels):
        whole[..., k : k + 1, 2:5, 2:5] = value
    io.save_labels(path, whole, folders.GRID)


def arranged(name, tmp_path):
    out = tmp_path / "out"
    import_module(f"data_scripts.{name}").arrange(tmp_path / "in", out, SOURCES[name])
    found = data.inspect(out)
    assert found.ok, found.faults
    assert set(found.kinds.values()) == {SOURCES[name].kind}
    assert set(found.table["labels"].dropna()) <= {len(SOURCES[name].labels)}
    return found


def test_the_decathlons_hippocampus(tmp_path):
    where = tmp_path / "in" / "Task04_Hippocampus"
    for number in (1, 17, 300, 311, 394):
        name = f"hippocampus_{number:03}.nii.gz"
        theirs(where / "imagesTr" / name, number % 90)
        theirs(where / "labelsTr" / name, number, labels=(1, 2))
        (where / "imagesTr" / f"._{name}").write_text("macOS")
    table = arranged("hippocampus_mr", tmp_path).table
    assert list(table["split"]) == ["train"] * 3 + ["test"] * 2


def test_lungs_in_and_out(tmp_path):
    for number in range(15, 26):
        for breath in ("insp", "exp"):
            where = tmp_path / "in" / "training"
            value = number if breath == "insp" else number + 40
            theirs(where / "scans" / f"case_{number:03}_{breath}.nii.gz", value)
            theirs(where / "lungMasks" / f"case_{number:03}_{breath}.nii.gz", value, labels=(1,))
    found = arranged("lung_ct", tmp_path)
    assert "case_020" not in set(found.table["name"])
    assert found.table.groupby("split")["name"].nunique().to_dict() == {"train": 6, "valid": 2, "test": 2}
    pair = data.PairedDataset(data.find(tmp_path / "out" / "test"), split="test", reading=data.Reading(scale="none"))[0]
    assert folders.number_of(pair["moving"]) == folders.number_of(pair["fixed"]) + 40


@pytest.mark.parametrize(("name", "kind"), [("oasis_2d", "slice"), ("oasis_3d", "aligned"), ("brain_atlas", "aligned")])
def test_neurites_oasis(tmp_path, name, kind):
    for number in range(1, 11):
        where = tmp_path / "in" / f"OASIS_OAS1_{number:04}_MR1"
        theirs(where / f"{kind}_norm.nii.gz", number)
        theirs(where / f"{kind}_seg4.nii.gz", number, labels=(1, 2, 3, 4))
    found = arranged(name, tmp_path)
    assert len(found.table) == (9 if name == "brain_atlas" else 10)
    label = data.Reading()(data.find(tmp_path / "out" / "train").records[0]).label
    assert label.sum((1, 2, 3)).tolist() == [9, 18, 9]
    if name == "brain_atlas":
        assert (tmp_path / "out" / "atlas" / "images" / "OASIS_OAS1_0001_MR1.nii.gz").is_file()


def test_abdomens(tmp_path):
    for number in range(1, 21):
        where = tmp_path / "in" / "datasets_deepreg_demo-abdct" / "dataset"
        theirs(where / "images" / f"{number:02}.nii.gz", number)
        theirs(where / "labels" / f"{number:02}.nii.gz", number, labels=(1, 6, 13))
    table = arranged("abdomen_ct", tmp_path).table
    assert table["split"].value_counts().to_dict() == {"train": 15, "test": 3, "valid": 2}


def test_mr_and_ultrasound_of_brains(tmp_path):
    for number in range(1, 9):
        where = tmp_path / "in" / "EASY-RESECT" / "NIFTI" / f"Case{number}"
        theirs(where / f"Case{number}-T1-resize.nii", number)
        theirs(where / f"Case{number}-US.nii", number + 40)
    assert len(arranged("resect", tmp_path).table) == 16


def test_nlsts_pairs_and_keypoints(tmp_path):
    where = tmp_path / "in" / "NLST"
    for number in range(1, 11):
        for role, value in (("0000", number), ("0001", number + 40)):
            name = f"NLST_{number:04}_{role}"
            theirs(where / "imagesTr" / f"{name}.nii.gz", value)
            theirs(where / "masksTr" / f"{name}.nii.gz", value, labels=(1,))
            (where / "keypointsTr").mkdir(exist_ok=True)
            (where / "keypointsTr" / f"{name}.csv").write_text(f"{number % 5},2,3\n4,5,{number % 3}\n")
    table = arranged("nlst", tmp_path).table
    assert table.groupby("split")["name"].nunique().to_dict() == {"train": 7, "valid": 1, "test": 2}
    found = data.find(tmp_path / "out" / "train")
    pair = data.PairedDataset(found, split="test", reading=data.Reading(scale="none"))[0]
    number = folders.number_of(pair["fixed"])
    assert folders.number_of(pair["moving"]) == number + 40
    voxels = pair["fixed_grid"].points(pair["fixed_points"], to="voxel", from_="world")
    assert voxels.numpy() == pytest.approx(np.array([[number % 5, 2, 3], [4, 5, number % 3]]), abs=1e-5)


def meta(path, number, *, labels=()):
    """The same as a MetaImage."""
    import SimpleITK

    nifti = path.with_suffix(".nii.gz")
    theirs(nifti, number, labels=labels)
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(nifti)), str(path))
    nifti.unlink()


def test_promise12s_glands(tmp_path):
    for number in range(10):
        for name, labels in ((f"Case{number:02}", ()), (f"Case{number:02}_segmentation", (1,))):
            meta(tmp_path / "in" / "TrainingData" / f"{name}.mhd", number, labels=labels)
    found = arranged("promise12", tmp_path)
    assert len(found.table) == 10
    scan = data.Reading(scale="none")(data.find(tmp_path / "out" / "train").records[0])
    assert folders.number_of(scan.image) == int(scan.name.removeprefix("Case"))
    assert scan.label.sum() == 9
    assert scan.grid.is_close(folders.GRID, tolerance=1e-3)


def test_popis_phases_and_landmarks(tmp_path):
    for c, case in enumerate(("bl", "ng", "dx", "gt", "mm2", "bh")):
        for k in range(3):
            meta(tmp_path / "in" / case / f"{10 * k:02}.mhd", 10 * c + k)
            (tmp_path / "in" / case / f"{10 * k:02}.pts").write_text(f"{c}\t-7.5\t{k}\n1 2 3\n")
    table = arranged("popi", tmp_path).table
    assert table.groupby("split")["group"].nunique().to_dict() == {"train": 4, "valid": 1, "test": 1}
    for path in (tmp_path / "out").rglob("bl/phase20.csv"):
        assert io.load_points(path)[0].tolist() == [[0, 7.5, 2], [-1, -2, 3]]  # LPS to RAS
        break
    else:
        pytest.fail("no landmarks were written")


def test_popis_files_are_named_once_in_the_manifest():
    files = SOURCES["popi"].files
    assert len(files) == 180
    assert len({file["url"] for file in files}) == 180
    assert files[0]["url"].endswith("/bl/mhd/00.mhd")
    assert files[0]["folder"] == "bl"


def test_hearts_with_one_label_for_three_sequences(tmp_path):
    for number in range(101, 121):
        for k, sequence in enumerate(("C0", "DE", "T2")):
            theirs(tmp_path / "in" / "train25" / f"myops_training_{number}_{sequence}.nii.gz", 3 * (number - 101) + k)
        gold = tmp_path / "in" / "train25_gd" / f"myops_training_{number}_gd.nii.gz"
        theirs(gold, number, labels=(500, 200, 1220, 2221, 600))
    table = arranged("myops", tmp_path).table
    assert table.groupby("split")["group"].nunique().to_dict() == {"train": 17, "valid": 1, "test": 2}
    assert set(table["name"].str.split("/").str[1]) == {"bssfp", "lge", "t2"}
    scan = data.Reading(scale="none")(data.find(tmp_path / "out" / "valid").records[0])
    assert scan.label.sum((1, 2, 3)).tolist() == [9, 27, 9]


def test_hearts_by_hand_from_the_command_line(tmp_path):
    """As they are downloaded, in an archive, and without labels."""
    import zipfile

    for number in range(101, 121):
        for k, sequence in enumerate(("C0", "DE", "T2")):
            theirs(tmp_path / "in" / f"{number}_{sequence}.nii.gz", 3 * (number - 101) + k)
    (tmp_path / "got").mkdir()
    with zipfile.ZipFile(tmp_path / "got" / "myops.zip", "w") as archive:
        for path in (tmp_path / "in").iterdir():
            archive.write(path, path.name)
    for archives, out in (("got", "a"), ("in", "b")):
        call = [sys.executable, "-m", "data_scripts.myops", "--archives", tmp_path / archives, "--out", tmp_path / out]
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert data.inspect(tmp_path / out).ok
    assert len(data.inspect(tmp_path / "a").rows) == 60
    assert (tmp_path / "got" / "myops.zip").exists()
    (tmp_path / "empty").mkdir()
    call[4], call[6] = tmp_path / "empty", tmp_path / "c"
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "it is empty or not there" in done.stderr


def test_ultrasound_of_prostates(tmp_path):
    for number in range(10):
        theirs(tmp_path / "in" / "dataset_trus3d-master" / f"us{number}.nii.gz", number)
    table = arranged("prostate_us", tmp_path).table
    assert table["split"].value_counts().to_dict() == {"train": 7, "valid": 1, "test": 2}


def test_mr_and_ultrasound_of_prostates(tmp_path):
    for number in range(11):
        where = tmp_path / "in" / "example-data-mrus"
        for role, value in (("moving", number), ("fixed", number + 40)):
            theirs(where / f"{role}_images" / f"case{number:06}.nii.gz", value)
            folders.save_scan(tmp_path / "labels", f"case{number:06}", value, role=f"{role}_", structures=3)
            (where / f"{role}_labels").mkdir(exist_ok=True)
            name = f"{role}_labels/case{number:06}.nii.gz"
            (tmp_path / "labels" / name).rename(where / name)
    found = arranged("prostate_mrus", tmp_path)
    assert found.table.groupby("split")["name"].nunique().to_dict() == {"train": 8, "valid": 1, "test": 2}


def test_masks_over_the_years(tmp_path):
    import h5py

    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "data.h5", "w") as file:
        for group in range(1, 11):
            for visit in (1, 2, 10):
                mask = np.zeros((16, 16, 12), np.uint8)
                mask[4 : 6 + group % 7, 4 : 9 + visit % 3, 3 : 5 + group // 3] = 1
                file[f"group-{group}-{visit}"] = mask
        file["note"] = np.zeros(3)
    table = arranged("prostate_longitudinal", tmp_path).table
    assert table.groupby("split")["group"].nunique().to_dict() == {"train": 7, "valid": 1, "test": 2}
    scan = data.Reading(scale="none")(data.find(tmp_path / "out" / "test").records[0])
    assert set(scan.label.unique().tolist()) == {0, 1}
    assert 0.02 < float(scan.image.max()) < 1
    assert float(scan.image.sum()) == pytest.approx(float(scan.label.sum()), rel=0.3)


def test_mnists_bytes(tmp_path):
    labels = np.repeat(np.arange(10, dtype=np.uint8), 12)
    images = np.random.default_rng(0).integers(0, 256, (120, 28, 28)).astype(np.uint8)
    header, short = (np.array(n, dtype=">i4").tobytes() for n in ([2051, 120, 28, 28], [2049, 120]))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
    (tmp_path / "in" / "train-labels-idx1-ubyte").write_bytes(short + labels.tobytes())
    table = arranged("mnist", tmp_path).table
    assert table["split"].value_counts().to_dict() == {"train": 80, "valid": 20, "test": 20}
    image, _ = io.load_image(tmp_path / "out" / "train" / "images" / "digit3" / "00036.png")
    np.testing.assert_array_equal(image[0, 0].numpy(), images[36])


def test_an_archive_of_another_kind_is_named(tmp_path):
    (tmp_path / "in" / "theirs").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"which has theirs"):
        import_module("data_scripts.lung_ct").arrange(tmp_path / "in", tmp_path / "out", SOURCES["lung_ct"])


# -- the command line --------------------------------------------------------------
def test_the_commands(tmp_path, capsys):
    assert cli.main(["data", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in SOURCES)
    assert cli.main(["data", "make", "mnist", "-o", str(tmp_path / "mnist")]) == 0
    assert cli.main(["data", "inspect", str(tmp_path / "mnist")]) == 0
    capsys.readouterr()
    assert cli.main(["data", "get", "myops", "-o", str(tmp_path / "myops")]) == 2
    assert "--make" in capsys.readouterr().err
    assert cli.main(["data", "make", "mnst"]) == 2
    assert "do you mean mnist?" in capsys.readouterr().err
