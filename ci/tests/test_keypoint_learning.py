"""Teaching a detector of keypoints: each rule by hand, and that a training learns, grows its labels, and goes on."""

import csv
import shutil

import cv2
import numpy as np
import pytest
import torch
from helpers import largest

from reglib import cli, keypoints, phantoms
from reglib.keypoints import learning
from reglib.keypoints.learning import Lesson, Plan, Views

SMALL = {"widths": (8, 8, 16, 16), "describes": 16}
QUICK = Plan(batch=2, lr=1e-3, radius=5, threshold=0.1, kernel=7, agree=0.3)


@pytest.fixture(scope="module")
def lessons():
    """Two labelled eyes and one without labels, 128 pixels wide."""
    found = []
    for seed in range(3):
        pair = phantoms.retina_pair(seed, size=256)
        image = keypoints.preprocess(pair.query, size=128)[0]
        points = torch.from_numpy((pair.query_branchings + 0.5) / 2 - 0.5).float()
        found.append(Lesson(f"eye{seed}", image, points if seed < 2 else None))
    return found


# -- what to learn from -------------------------------------------------------------------------------------------
def test_the_published_layout(tmp_path):
    for name in ("ImageData", "Annotations", "ImageSets", "Auxiliary"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    for folder, name in (("ImageData", "a"), ("ImageData", "b"), ("Auxiliary", "c")):
        noise = cv2.GaussianBlur(rng.integers(0, 255, (96, 128, 3)).astype(np.uint8), (0, 0), 2)
        cv2.imwrite(str(tmp_path / folder / f"{name}.png"), noise)
    (tmp_path / "Annotations" / "a.txt").write_text("0.5 0.5\n0 1\n")
    (tmp_path / "ImageSets" / "train.txt").write_text("a.png, a.txt\n")
    found = keypoints.load_lessons(tmp_path, auxiliary=tmp_path / "Auxiliary", size=(48, 64))
    assert [(lesson.name, lesson.points is None) for lesson in found] == [("a", False), ("b", True), ("c", True)]
    assert found[0].image.shape == (1, 48, 64)
    assert found[0].points.tolist() == [[31.5, 23.5], [-0.5, 47.5]]
    assert [lesson.name for lesson in keypoints.load_lessons(tmp_path, split="train.txt")] == ["a"]
    for words in ("0.5\n", "a b\n", "1.5 0\n"):
        (tmp_path / "Annotations" / "a.txt").write_text(words)
        with pytest.raises(ValueError, match="from 0 to 1"):
            keypoints.load_lessons(tmp_path, size=(48, 64))
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        keypoints.load_lessons(tmp_path / "Annotations")


def test_a_bump_is_one_at_its_top_and_nothing_at_its_corners():
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[0, 20, 20] = mask[0, 20, 23] = True
    alone = torch.zeros_like(mask)
    alone[0, 20, 20] = True
    one, two = (learning.bumps(x)[0, 0] for x in (alone, mask))
    assert float(one[20, 20]) == 1
    assert float(one[14, 14]) == float(one[13, 20]) == 0
    assert float(one[14, 20]) > 0
    assert largest(one - one.T) < 1e-6
    assert float(two.max()) == 1


def test_places_off_the_image_are_no_labels():
    mask = learning.label_of(torch.tensor([[3.4, 1.0], [-0.6, 2.0], [9.4, 4.0], [9.6, 4.0]]), (5, 10))
    assert mask.nonzero().tolist() == [[1, 3], [4, 9]]


# -- views --------------------------------------------------------------------------------------------------------
def test_a_view_reads_where_its_matrix_says():
    views = Views(20.0, 0.1, (0.8, 1.2), perspective=0.2)
    image = torch.zeros(1, 1, 64, 96)
    image[0, 0, 30:33, 50:53] = 1
    for seed in range(5):
        matrix = learning.draw_view(views, (64, 96), np.random.default_rng(seed))
        seen = learning.read_through(image, [matrix])[0, 0]
        expected = learning.moved(torch.linalg.inv(matrix), torch.tensor([[51.0, 31.0]]))[0]
        rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
        middle = torch.stack([(columns * seen).sum(), (rows * seen).sum()]) / seen.sum()
        assert largest(middle - expected) < 0.3


def test_a_view_without_size_is_the_image():
    still = learning.draw_view(Views(0.0, 0.0, (1.0, 1.0)), (32, 48), np.random.default_rng(0))
    assert largest(still - torch.eye(3)) < 1e-5


def test_a_similarity_keeps_angles():
    matrix = learning.draw_view(Views(30.0, 0.2, (0.7, 1.3)), (64, 96), np.random.default_rng(3)).double()
    linear = matrix[:2, :2]
    assert largest(linear.T @ linear - torch.eye(2) * torch.linalg.det(linear)) < 1e-6


# -- labels that grow ---------------------------------------------------------------------------------------------
def test_values_by_hand():
    plan = Plan()  # a window of 4 x 4: two before, two after, the far edge left out
    values = np.zeros((40, 40), np.int16)
    first = learning.noted(values, [(10, 20)], plan)
    assert first[20, 10] == 5
    assert first.sum() == 5
    assert values.sum() == 0
    beside = learning.noted(first, [(11, 21)], plan)  # the old one, in its window, gains one
    assert beside[20, 10] == 6
    assert beside[21, 11] == 0
    outside = learning.noted(first, [(8, 20)], plan)  # x of 10 is the far edge of a window around 8
    assert (outside[20, 10], outside[20, 8]) == (4, 5)
    assert learning.noted(first, [(10, 20)], plan)[20, 10] == 10
    lost = first
    for expected in (4, 3, 2, 1, 0, 0):
        lost = learning.noted(lost, [], plan)
        assert lost[20, 10] == expected


def test_labels_stay_and_what_has_lasted_joins_them():
    label = torch.zeros(80, 80, dtype=torch.bool)
    label[20, 20] = label[20, 24] = True  # closer than the radius: both stay
    values = np.zeros((80, 80), np.int16)
    values[20, 27], values[60, 60], values[40, 60] = 9, 5, 4  # too close to a label; lasted; not yet
    found = learning.grown(values, label, Plan())
    assert found.nonzero().tolist() == [[20, 20], [20, 24], [60, 60]]


def peaks(places, shape=(64, 64)):
    image = torch.zeros(1, 1, *shape)
    for x, y in places:
        image[0, 0, y, x] = 0.9
    return image


def again(probability, descriptors, other_probability, other_descriptors, view, plan):
    seen, other = keypoints.Seen(probability, descriptors), keypoints.Seen(other_probability, other_descriptors)
    return learning.found_again(seen, other, view, plan)


def test_only_what_is_found_again_and_described_alike_counts():
    torch.manual_seed(0)
    plan = Plan(radius=4)
    places = [(12, 12), (40, 14), (20, 44), (46, 46)]
    described = torch.nn.functional.normalize(torch.randn(1, 32, 8, 8), dim=1)
    still = torch.eye(3)
    every = again(peaks(places), described, peaks(places), described, still, plan)
    assert every.long().tolist() == [list(p) for p in sorted(places, key=lambda p: p[::-1])]
    fewer = again(peaks(places), described, peaks(places[1:]), described, still, plan)
    assert [12, 12] not in fewer.long().tolist()
    assert len(fewer) == 3
    unlike = torch.nn.functional.normalize(torch.randn(1, 32, 8, 8), dim=1)
    assert len(again(peaks(places), described, peaks(places), unlike, still, plan)) < 3
    shifted = torch.tensor([[1.0, 0, 6], [0, 1, 0], [0, 0, 1]])  # a view reads 6 pixels further right
    there = [(x - 6, y) for x, y in places]
    rolled = torch.nn.functional.normalize(learning.read_through(described, [torch.eye(3)]), dim=1)
    moved = again(peaks(places), rolled, peaks(there), rolled, shifted, Plan(radius=4, alike=1.0))
    assert {tuple(p) for p in moved.long().tolist()} <= set(places)


# -- squares of photographs ---------------------------------------------------------------------------------------
def test_squares_hold_the_pixels_and_labels_of_their_place(lessons):
    """A pixel's value tells where it is."""
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    whole = Lesson("eye", (1000 * rows + columns)[None], torch.tensor([[20.0, 30.0], [100.0, 70.0], [64.0, 48.0]]))
    cut = keypoints.cut_lessons([whole, Lesson("bare", whole.image)], size=64, count=5, seed=1)
    assert [lesson.points is None for lesson in cut] == 5 * [False] + 5 * [True]
    assert len({lesson.name for lesson in cut}) == 10
    seen = 0
    for lesson in cut[:5]:
        assert lesson.image.shape == (1, 64, 64)
        for x, y in lesson.points.long().tolist():
            value = float(lesson.image[0, y, x])
            assert [value % 1000, value // 1000] in whole.points.tolist()
            seen += 1
    assert seen >= 5
    with pytest.raises(ValueError, match="multiple of 8, at most the 96 pixels of eye; got 100"):
        keypoints.cut_lessons([whole], size=100, count=1)


# -- losses -------------------------------------------------------------------------------------------------------
def test_pooled_dice_by_hand():
    prediction, target = torch.tensor([[0.5, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert float(learning.pooled_dice_loss(prediction, target)) == pytest.approx(1 - (3.0 + 1e-3) / (3.25 + 1e-3))
    assert float(learning.pooled_dice_loss(target, target)) == pytest.approx(0, abs=1e-6)


def test_triplets_by_hand():
    """Three descriptors whose views are themselves: the hardest and the drawn ones are known for n = 2."""
    a = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    got = float(learning.triplet_loss(a, a, np.random.default_rng(0), margin=0.8))
    like, unlike = 1.0, 0.6  # the only other one is both the hardest and the drawn one
    expected = max(0, 0.8 + (1 - like) - (2 - 2 * unlike) / 2) + 2 * unlike**2
    assert got == pytest.approx(expected, abs=1e-6)
    apart = torch.eye(8)
    assert float(learning.triplet_loss(apart, apart, np.random.default_rng(0))) == 0


# -- the training -------------------------------------------------------------------------------------------------
def fresh():
    torch.manual_seed(0)
    return keypoints.SuperRetina(**SMALL)


def test_a_training_learns_and_tells_what_its_keypoints_are(lessons, tmp_path):
    told = {}
    history = keypoints.train_keypoints(
        fresh(), lessons, epochs=30, plan=QUICK, out=tmp_path, watch=told.__setitem__, progress=False
    )
    assert np.mean(history.values("detector")[-5:]) < 0.9 * np.mean(history.values("detector")[:5])
    labelled = np.mean([len(lesson.points) for lesson in lessons[:2]])
    assert min(history.values("keypoints")) > 0.9 * labelled  # labels never go
    assert set(told) == set(range(1, 31))
    assert set(told[30]) == {"eye0", "eye1"}
    with (tmp_path / "history.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 30
    trained = keypoints.load_superretina(tmp_path / "detector.pt")
    found = keypoints.learned(trained, radius=5)(lessons[0].image[None])
    seen = trained(lessons[0].image[None]).probability[0, 0].detach()
    here = learning.bumps(learning.label_of(lessons[0].points, seen.shape)[None])[0, 0] > 0.5
    assert seen[here].mean() > 2 * seen[~here].mean()
    assert found.descriptors.shape == (len(found), 16)


def test_a_stopped_training_goes_on_to_the_same_losses(lessons, tmp_path):
    how = {"plan": QUICK, "progress": False}
    whole = keypoints.train_keypoints(fresh(), lessons, epochs=4, **how).values("loss")
    keypoints.train_keypoints(fresh(), lessons, epochs=2, out=tmp_path, **how)
    torch.manual_seed(9)
    resumed = keypoints.train_keypoints(fresh(), lessons, epochs=4, out=tmp_path, **how).values("loss")
    assert resumed == pytest.approx(whole, rel=1e-5)
    (tmp_path / "detector.pt").write_bytes((tmp_path / "detector.pt").read_bytes()[:200])
    with pytest.raises(ValueError, match="cut off"):
        keypoints.train_keypoints(fresh(), lessons, epochs=5, out=tmp_path, **how)


def test_what_nothing_can_be_learned_from(lessons):
    with pytest.raises(ValueError, match="no photograph has labelled"):
        keypoints.train_keypoints(fresh(), lessons[2:], epochs=1)
    other = Lesson("other", torch.zeros(1, 64, 64))
    with pytest.raises(ValueError, match="one size"):
        keypoints.train_keypoints(fresh(), [*lessons, other], epochs=1)
    with pytest.raises(ValueError, match="name of its own"):
        keypoints.train_keypoints(fresh(), [lessons[0], lessons[0]], epochs=1)


# -- the command line ---------------------------------------------------------------------------------------------
def test_retina_train_learns_from_a_folder_goes_on_and_serves_align(tmp_path, capsys):
    """Two labelled eyes and an unlabelled one; the picture grows with the epochs, and a second run adds one."""
    (tmp_path / "Lab" / "ImageData").mkdir(parents=True)
    (tmp_path / "Lab" / "Annotations").mkdir()
    (tmp_path / "Auxiliary").mkdir()
    for k in range(3):
        pair = phantoms.retina_pair(k, size=128)
        where = tmp_path / ("Auxiliary" if k == 2 else "Lab/ImageData") / f"eye{k}.png"
        cv2.imwrite(str(where), pair.query[..., ::-1])
        if k < 2:
            np.savetxt(tmp_path / "Lab" / "Annotations" / f"eye{k}.txt", (pair.query_branchings + 0.5) / 128)
    out = tmp_path / "out"
    words = ["retina", "train", str(tmp_path / "Lab"), "-o", str(out), "--auxiliary", str(tmp_path / "Auxiliary")]
    words += ["--small", "--size", "128", "--squares", "2", "--square", "64", "--threads", "1"]
    assert cli.main([*words, "--epochs", "2"]) == 0
    assert "keypoints" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"detector.pt", "history.csv", "growth.png"}
    assert cv2.imread(str(out / "growth.png")).shape == (64, 128, 3)
    first = (out / "history.csv").read_text().splitlines()
    assert cli.main([*words, "--epochs", "3"]) == 0
    lines = (out / "history.csv").read_text().splitlines()
    assert lines[:3] == first
    assert len(lines) == 4
    assert keypoints.load_superretina(out / "detector.pt").convDc.out_channels == 64
    capsys.readouterr()
    assert cli.main([*words, "--epochs", "3", "--square", "256", "--fresh"]) == 2
    assert "size must be a multiple of 8, at most the 128 pixels of eye0; got 256" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "Lab" / "Annotations")
    assert cli.main([*words, "--epochs", "3"]) == 2
    assert "no photograph has labelled keypoints" in capsys.readouterr().err
