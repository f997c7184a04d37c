"""Pairs and batches: DeepReg's and VoxelMorph's sampling rules, what an item holds, caches, workers."""

import json
import os
import subprocess
import sys
from itertools import combinations, permutations
from math import comb

import folders
import numpy as np
import pytest
import torch
from folders import number_of
from helpers import sentence

from reglib import data, field, io
from reglib.data import sampling
from reglib.grid import Grid

AS_STORED = data.Reading(scale="none")


def met(dataset, epoch=0):
    return [(draw.moving, draw.fixed) for draw in dataset.draws(epoch)]


# -- real data in DeepReg's layouts ------------------------------------------------
REAL = [
    ("nifti/paired/train", "paired", 25, 25, True),
    ("nifti/paired/test", "paired", 2, 2, True),
    ("nifti/unpaired/train", "unpaired", None, None, True),
    ("nifti/unpaired/test", "unpaired", 2, 1, True),
    ("nifti/grouped/train", "grouped", 7, 2, True),
    ("nifti/grouped/test", "grouped", 2, 1, True),
    ("h5/paired/test", "paired", 1, 1, True),
    ("h5/unpaired/train", "unpaired", 4, 2, False),
    ("h5/unpaired/test", "unpaired", 2, 1, False),
    ("h5/grouped/test", "grouped", 2, 1, False),
]
CLASSES = {"paired": data.PairedDataset, "unpaired": data.UnpairedDataset, "grouped": data.GroupedDataset}


@pytest.mark.parametrize(("folder", "kind", "scans", "pairs", "labeled"), REAL, ids=[row[0] for row in REAL])
def test_counts_and_pairs_are_what_deepregs_rules_say(real_data, folder, kind, scans, pairs, labeled):
    at = real_data / "deepreg_layout" / folder
    found = data.find(at)
    if scans is None:
        scans = len(list((at / "images").glob("*.nii.gz")))
        pairs = scans // 2
    assert (found.kind, len(found.records), found.labeled) == (kind, scans, labeled)
    dataset = CLASSES[kind](found)
    assert len(dataset) == pairs
    first, second = {i for i, _ in met(dataset)}, {j for _, j in met(dataset)}
    if kind == "paired":
        assert met(dataset) == [(i, i) for i, _ in met(dataset)]
        assert first == set(range(scans))
    else:
        assert len(first | second) == 2 * pairs  # nobody twice
    if kind == "grouped":
        assert all(found.records[i].group == found.records[j].group for i, j in met(dataset))
        n = [len(group) for group in found.groups]
        ordered = data.GroupedDataset(found, sample_image_in_group=False, intra_group_option="forward")
        assert len(ordered) == sum(comb(k, 2) for k in n)
        free = data.GroupedDataset(found, sample_image_in_group=False)
        assert len(free) == sum(k * (k - 1) for k in n)
        if len(n) > 1:
            between = data.GroupedDataset(found, sample_image_in_group=False, intra_group_prob=0)
            assert len(between) == 2 * n[0] * n[1]
    item = dataset[0]
    assert item["moving"].shape[1:] == item["moving_grid"].shape
    assert float(item["moving"].max()) == float(item["fixed"].max()) == 1
    assert ("fixed_label" in item) == labeled
    if labeled:
        assert item["moving_label"].shape == (1, *item["moving"].shape[1:])
        assert item["fixed_label"].shape == (1, *item["fixed"].shape[1:])
        assert float(item["fixed_label"].max()) <= 1


def test_real_pairs_of_different_grids_come_to_one(real_data):
    found = data.find(real_data / "deepreg_layout" / "nifti" / "paired" / "train")
    kept = data.PairedDataset(found)[0]
    assert kept["moving"].shape == (1, 64, 64, 60)
    assert kept["fixed"].shape == (1, 44, 59, 41)
    reading = data.Reading(multiple=16)
    batch = next(iter(data.loader(data.PairedDataset(found, reading=reading, onto_fixed=True), batch_size=4)))
    for key in ("moving", "fixed", "moving_label", "fixed_label"):
        assert batch[key].shape == (4, 1, 48, 64, 48)
    assert all(g == batch["fixed_grid"][k] for k, g in enumerate(batch["moving_grid"]))


# -- who meets whom ----------------------------------------------------------------
@pytest.mark.parametrize("n", [2, 5, 8])
def test_unpaired_pairs_are_disjoint_and_others_each_epoch(tmp_path, n):
    dataset = data.UnpairedDataset(data.find(folders.unpaired(tmp_path, n)))
    epochs = [met(dataset, epoch) for epoch in range(40)]
    for pairs in epochs:
        assert len(pairs) == n // 2
        assert len({index for pair in pairs for index in pair}) == 2 * (n // 2)
    everyone = {pair for pairs in epochs for pair in pairs}
    assert everyone == set(permutations(range(n), 2)) or n == 8
    assert met(dataset, 3) == epochs[3]


def test_paired_scans_stay_together_and_are_shuffled_in_training_alone(tmp_path):
    found = data.find(folders.paired(tmp_path, 6))
    train, valid = (data.PairedDataset(found, split=split, reading=AS_STORED) for split in ("train", "valid"))
    assert sorted(met(train)) == met(valid) == [(k, k) for k in range(6)]
    assert len({tuple(met(train, epoch)) for epoch in range(5)}) == 5
    for k in range(6):
        assert number_of(train[k]["fixed"]) == number_of(train[k]["moving"]) + 50
    assert number_of(valid[3]["moving"]) == 4


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("option", sampling.INTRA_OPTIONS)
def test_rates_of_ten_thousand_draws_follow_the_rule(probability, option):
    groups = [[0, 1, 2, 3], [4, 5], [6, 7, 8]]
    owner = {index: g for g, group in enumerate(groups) for index in group}
    rng = np.random.default_rng(1)
    draws = [
        draw
        for _ in range(10_000 // len(groups))
        for draw in sampling.groups_sampled(groups, rng, intra_group_prob=probability, intra_group_option=option)
    ]
    within = [draw for draw in draws if owner[draw.moving] == owner[draw.fixed]]
    assert len(within) / len(draws) == pytest.approx(probability, abs=0.02)
    forward = sum(draw.moving < draw.fixed for draw in within)
    assert all(draw.moving != draw.fixed for draw in draws)
    if option == "unconstrained" and within:
        assert forward / len(within) == pytest.approx(0.5, abs=0.02)
    else:
        assert forward == (len(within) if option == "forward" else 0)
    count = np.bincount([draw.label_of(3) for draw in draws], minlength=3) / len(draws)
    np.testing.assert_allclose(count, 1 / 3, atol=0.02)
    starts = np.bincount([owner[draw.moving] for draw in draws], minlength=3) / len(draws)
    np.testing.assert_allclose(starts, 1 / 3, atol=0.02)


def test_a_labelled_grouped_epoch_draws_labels_and_groups_alike(tmp_path):
    found = data.find(folders.grouped(tmp_path, (3, 2, 4)))
    dataset = data.GroupedDataset(found, intra_group_prob=0.7, intra_group_option="forward", reading=AS_STORED)
    items = [dataset[epoch, k] for epoch in range(30) for k in range(3)]
    for item in items:
        first, second = number_of(item["moving"]), number_of(item["fixed"])
        assert first // 10 != second // 10 or first < second
        whole = {n: folders.label_of(n)[0].float() for n in (first, second)}
        one = slice(item["label_index"], item["label_index"] + 1)
        torch.testing.assert_close(item["moving_label"], whole[first][one])
        torch.testing.assert_close(item["fixed_label"], whole[second][one])
    assert {item["label_index"] for item in items} == {0, 1}


@pytest.mark.parametrize("option", sampling.INTRA_OPTIONS)
def test_all_pairs_within_groups(option):
    groups = [[0, 1, 2], [3, 4], [5]]
    rng = np.random.default_rng(0)
    draws = sampling.groups_enumerated(groups, rng, intra_group_prob=1, intra_group_option=option)
    found = sorted((draw.moving, draw.fixed) for draw in draws)
    each = {
        "forward": [p for g in groups for p in combinations(g, 2)],
        "backward": [p[::-1] for g in groups for p in combinations(g, 2)],
        "unconstrained": [p for g in groups for p in permutations(g, 2)],
    }
    assert found == sorted(each[option])


def test_all_pairs_between_groups():
    groups = [[0, 1, 2], [3, 4], [5]]
    rng = np.random.default_rng(0)
    draws = sampling.groups_enumerated(groups, rng, intra_group_prob=0, intra_group_option="forward")
    expected = [(i, j) for a, b in permutations(groups, 2) for i in a for j in b]
    assert sorted((draw.moving, draw.fixed) for draw in draws) == sorted(expected)


@pytest.mark.parametrize(
    ("groups", "rules", "words"),
    [
        ([[0, 1], [2]], {"intra_group_prob": 1.2}, ["intra_group_prob", "1.2"]),
        ([[0, 1], [2]], {"intra_group_option": "sideways"}, ["sideways", "forward"]),
        ([[0, 1, 2]], {"intra_group_prob": 0.5}, ["two groups", "1"]),
        ([[0], [1]], {"intra_group_prob": 0.5}, ["two scans"]),
        ([[0, 1], [2]], {"intra_group_prob": 0.5, "sample_image_in_group": False}, ["0.5", "sample_image_in_group"]),
    ],
)
def test_rules_that_cannot_be_kept(tmp_path, groups, rules, words, no_jaxtyping):
    found = data.find(folders.grouped(tmp_path, [len(group) for group in groups], structures=0))
    with pytest.raises(ValueError, match=words[0]) as raised:
        data.GroupedDataset(found, **rules)
    sentence(raised, *words)


def test_a_group_of_one_sits_out_within_groups(tmp_path):
    found = data.find(folders.grouped(tmp_path, (3, 1, 2), structures=0))
    assert len(data.GroupedDataset(found)) == 2


def test_scan_to_scan_draws_independently_and_scan_to_atlas_keeps_the_fixed(tmp_path):
    found = data.find(folders.unpaired(tmp_path / "scans", 4))
    dataset = data.ScanToScanDataset(found, count=4000)
    pairs = np.array(met(dataset))
    same = (pairs[:, 0] == pairs[:, 1]).mean()
    assert same == pytest.approx(0.25, abs=0.02)
    folders.save_scan(tmp_path / "atlas", "atlas", 77)
    atlas = data.find(tmp_path / "atlas").records[0]
    dataset = data.ScanToAtlasDataset(found, atlas, count=20, reading=AS_STORED)
    items = [dataset[k] for k in range(20)]
    assert {number_of(item["fixed"]) for item in items} == {77}
    assert {number_of(item["moving"]) for item in items} == {1, 2, 3, 4}


def test_validation_is_the_same_in_every_epoch_and_whatever_the_seed(tmp_path):
    found = data.find(folders.grouped(tmp_path, (3, 4, 5)))
    valid = [data.GroupedDataset(found, split="valid", intra_group_prob=0.5, seed=seed) for seed in (0, 7)]
    assert met(valid[0], 0) == met(valid[0], 9) == met(valid[1], 0)
    train = [data.GroupedDataset(found, intra_group_prob=0.5, seed=seed) for seed in (0, 7)]
    assert met(train[0]) != met(train[1])


SCRIPT = """
import json, sys, torch
from reglib import data
torch.set_num_threads(1)
if __name__ == "__main__":
    found = data.find(sys.argv[1])
    sets = [data.GroupedDataset(found, split=s, intra_group_prob=0.5, seed=3) for s in ("valid", "train")]
    workers = int(sys.argv[2])
    seen = []
    for dataset in sets:
        batches = data.loader(dataset, workers=workers)
        for epoch in range(2):
            for batch in batches:
                seen.append([*batch["moving_name"], *batch["fixed_name"], *batch["label_index"].tolist()])
    print(json.dumps(seen))
"""


def test_two_processes_with_and_without_workers_see_the_same(tmp_path):
    folders.grouped(tmp_path / "data", (3, 4, 5))
    (tmp_path / "script.py").write_text(SCRIPT)
    seen = [
        json.loads(
            subprocess.run(
                [sys.executable, tmp_path / "script.py", tmp_path / "data", str(workers)],
                check=True,
                capture_output=True,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            ).stdout
        )
        for workers in (0, 4)
    ]
    assert seen[0] == seen[1]
    assert seen[0][:3] == seen[0][3:6]  # validation repeats
    assert seen[0][6:9] != seen[0][9:12]  # training does not


def test_shares_of_several_processes_are_disjoint_and_alike(tmp_path):
    dataset = data.UnpairedDataset(data.find(folders.unpaired(tmp_path, 11, structures=0)))
    shares = [list(data.EpochSampler(dataset, rank=rank, replicas=2)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [2, 2]
    assert not set(shares[0]) & set(shares[1])
    with pytest.raises(ValueError, match="rank"):
        data.EpochSampler(dataset, rank=2, replicas=2)


def test_an_epoch_can_be_set_to_go_on(tmp_path):
    dataset = data.UnpairedDataset(data.find(folders.unpaired(tmp_path, 6, structures=0)))
    sampler = data.EpochSampler(dataset)
    epochs = [list(sampler) for _ in range(3)]
    again = data.EpochSampler(dataset)
    again.epoch = 2
    assert list(again) == epochs[2]


def test_torchs_and_monais_weighted_samplers_fit(tmp_path):
    from monai.data.samplers import DistributedWeightedRandomSampler
    from torch.utils.data import WeightedRandomSampler

    dataset = data.PairedDataset(data.find(folders.paired(tmp_path, 4)), split="valid", reading=AS_STORED)
    weights = [0.0, 1.0, 0.0, 0.0]
    for sampler in (
        WeightedRandomSampler(weights, 5),
        DistributedWeightedRandomSampler(
            dataset, weights, num_samples_per_rank=5, num_replicas=2, rank=1, even_divisible=False
        ),
    ):
        seen = [number_of(b["moving"][0]) for b in data.loader(dataset, sampler=sampler)]
        assert set(seen) == {2}


# -- what an item holds ------------------------------------------------------------
def test_labels_one_all_or_none(tmp_path):
    found = data.find(folders.paired(tmp_path))
    assert data.PairedDataset(found)[0]["moving_label"].shape[0] == 1
    for dataset in (data.PairedDataset(found, split="test"), data.PairedDataset(found, labels="all")):
        item = dataset[0]
        assert item["moving_label"].shape[0] == 2
        assert item["label_index"] == -1
    item = data.PairedDataset(found, labels="none")[0]
    assert "moving_label" not in item
    assert item["label_index"] == -1
    batch = next(iter(data.loader(data.PairedDataset(found, split="test", labels="sample"), batch_size=4)))
    assert batch["fixed_label"].shape[:2] == (4, 1)


def test_labels_that_differ_in_number_are_named(tmp_path):
    folders.save_scan(tmp_path, "case", 1, role="moving_", structures=2)
    folders.save_scan(tmp_path, "case", 2, role="fixed_", structures=1)
    with pytest.raises(ValueError, match="as many labels") as raised:
        data.PairedDataset(data.find(tmp_path))[0]
    sentence(raised, "2", "1")


def test_scans_without_a_label_get_empty_masks_in_a_batch(tmp_path):
    folders.unpaired(tmp_path, 4)
    images = sorted((tmp_path / "images").iterdir())
    with_labels = data.from_list(images[:2], sorted((tmp_path / "labels").iterdir())[:2])
    without = data.from_list(images[2:])
    found = data.Found("paired", (*with_labels.records,), (with_labels.records[1], without.records[0]))
    batch = next(iter(data.loader(data.PairedDataset(found, split="valid"), batch_size=2)))
    assert batch["fixed_label"].shape[:2] == (2, 2)
    assert float(batch["fixed_label"][0].sum()) > 0
    assert float(batch["fixed_label"][1].sum()) == 0
    assert batch["label_index"].tolist() == [-1, -1]


def test_points_and_grids_are_in_lists(tmp_path):
    folders.paired(tmp_path, 2)
    for role in ("moving", "fixed"):
        (tmp_path / f"{role}_points").mkdir()
        for k in (1, 2):
            io.save_points(tmp_path / f"{role}_points" / f"case{k}.csv", torch.rand(1, 2 + k, 3))
    batch = next(iter(data.loader(data.PairedDataset(data.find(tmp_path), split="valid"), batch_size=2)))
    assert [len(points) for points in batch["moving_points"]] == [3, 4]
    assert [grid.shape for grid in batch["fixed_grid"]] == 2 * [folders.GRID.shape]
    assert batch["moving_name"] == ["case1", "case2"]


def test_scans_of_different_shapes_do_not_stack(tmp_path):
    folders.save_scan(tmp_path, "a", 1, structures=0)
    folders.save_scan(tmp_path, "b", 2, structures=0, grid=folders.GRID.pad((0, 1, 0), (0, 0, 0)))
    dataset = data.UnpairedDataset(data.find(tmp_path))
    other = data.UnpairedDataset(data.find(tmp_path), seed=1)
    items = [dataset[0], other[0] if other[0]["fixed"].shape != dataset[0]["fixed"].shape else _exchanged(dataset[0])]
    with pytest.raises(ValueError, match="one shape") as raised:
        data.collate(items)
    sentence(raised, "(1, 9, 12, 7)", "(1, 9, 13, 7)")


def _exchanged(item):
    return {**item, "moving": item["fixed"], "fixed": item["moving"]}


def test_a_moving_scan_is_brought_onto_the_fixed_grid(tmp_path):
    other = Grid((11, 10, 9), folders.GRID.world_from_voxel.numpy() @ np.diag([0.9, 1.1, 0.8, 1]))
    folders.save_scan(tmp_path, "a", 1, role="moving_", grid=other)
    folders.save_scan(tmp_path, "a", 2, role="fixed_")
    found = data.find(tmp_path)
    item = data.PairedDataset(found, onto_fixed=True, labels="all")[0]
    assert item["moving_grid"] == folders.GRID
    expected = field.resample(folders.label_of(1, other).float(), other, folders.GRID, mode="nearest")[0]
    torch.testing.assert_close(item["moving_label"], expected)
    assert data.PairedDataset(found)[0]["moving_grid"].is_close(other)


def test_an_item_may_be_written_into(tmp_path):
    dataset = data.PairedDataset(data.find(folders.paired(tmp_path, 1)), cache="memory")
    dataset[0]["moving"].zero_()
    assert float(dataset[0]["moving"].max()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "training"}, ["split", "train"]),
        ({"labels": "some"}, ["labels", "sample"]),
    ],
)
def test_words_that_are_not_known(tmp_path, arguments, words, no_jaxtyping):
    found = data.find(folders.paired(tmp_path, 1))
    with pytest.raises(ValueError, match=words[0]) as raised:
        data.PairedDataset(found, **arguments)
    sentence(raised, *words)


def test_a_layout_of_another_kind(tmp_path):
    found = data.find(folders.paired(tmp_path, 1))
    with pytest.raises(ValueError, match="unpaired or grouped"):
        data.UnpairedDataset(found)
    with pytest.raises(ValueError, match="two scans"):
        len(data.UnpairedDataset(data.Found("unpaired", found.records)))
    with pytest.raises(IndexError, match="1 pairs"):
        data.PairedDataset(found)[1]


# -- caches ------------------------------------------------------------------------
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_cache_gives_what_the_files_have(tmp_path, where):
    found = data.find(folders.paired(tmp_path / "data", 3))
    cache = "memory" if where == "memory" else tmp_path / "cache"
    plain, cached = (data.PairedDataset(found, cache=c, split="valid") for c in (None, cache))
    for k in range(3):
        for key, value in plain[k].items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(cached[k][key], value, rtol=0, atol=0)
            else:
                assert cached[k][key] == value


def test_scans_in_memory_are_not_read_again(tmp_path):
    found = data.find(folders.paired(tmp_path, 2))
    dataset = data.PairedDataset(found, cache="memory")
    for record in (*found.records, *found.fixed):
        record.image.path.unlink()
    assert dataset[0]["moving"].shape == (1, *folders.GRID.shape)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_cache_says_what_is_wrong_with_a_file(tmp_path, where):
    found = data.find(folders.paired(tmp_path / "data", 1))
    found.records[0].image.path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="case1") as raised:
        data.PairedDataset(found, cache="memory" if where == "memory" else tmp_path / "cache")[0]
    sentence(raised, "case1.nii.gz")


def test_a_file_that_changed_is_read_again_and_so_is_another_reading(tmp_path):
    found = data.find(folders.paired(tmp_path / "data", 1))
    cache = tmp_path / "cache"
    assert number_of(data.PairedDataset(found, cache=cache, reading=AS_STORED)[0]["moving"]) == 1
    files = len(list(cache.iterdir()))
    assert data.PairedDataset(found, cache=cache, reading=data.Reading(multiple=4))[0]["moving"].shape[-1] == 8
    assert len(list(cache.iterdir())) == 2 * files
    folders.save_scan(tmp_path / "data", "case1", 33, role="moving_")
    os.utime(found.records[0].image.path, (1, 1))
    assert number_of(data.PairedDataset(found, cache=cache, reading=AS_STORED)[0]["moving"]) == 33
