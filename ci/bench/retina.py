"""Measures what retinal alignment is worth: on known maps, on strangers, and with a detector that was just trained.

python ci/bench/retina.py            200 known maps, 50 pairs of strangers, ten minutes of training on two CPU cores
python ci/bench/retina.py --quick    20, 5 and two epochs
python ci/bench/retina.py --check    exit status 1 if a bar is missed; writes build/bench/retina.{md,json}

Known maps: a real photograph of a retina, turned to 30 degrees, scaled from 0.8 to 1.25, tilted, shifted, brightened,
blurred and with noise. Errors are means over the field, in pixels of 2912, as on FIRE. scikit-image's SIFT, matcher and
RANSAC get the first of them at the same size, in the same process.

Strangers: photographs of two different synthetic eyes, every other pair with the ground of the real photograph.

The detector learns from twelve synthetic eyes, of whose branchings it is told half, and is scored by FIRE's protocol on
twenty pairs of others, beside SIFT.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from reglib import keypoints, phantoms
from reglib.keypoints import Alignment, Photo

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FULL = 2912  # pixels along FIRE's sides
RIGHT_PX, WRONG_PX = 5.0, 50.0  # mean errors
RIGHT_SHARE, BEHIND, MOST_SECONDS = 0.97, 0.02, 600  # the bars; BEHIND is of AUC
PEER_PAIRS = 5
EYES, SQUARES, SQUARE, TOLD, EPOCHS = 12, 4, 256, 0.5, 100
PLAN = keypoints.Plan(
    lr=5e-4,
    radius=8,
    agree=0.3,
    expands_from=8,
    detector_views=keypoints.Views(20.0, 0.1, (0.85, 1.2)),
    descriptor_views=keypoints.Views(20.0, 0.1, (0.85, 1.2), 0.05),
)
WIDTHS, DESCRIBES = (16, 16, 32, 32), 64
TESTS = {"S": 8, "P": 6, "A": 6}


# -- known maps ---------------------------------------------------------------------------------------------------
def known_map(rng: np.random.Generator, side: int) -> np.ndarray:
    """A homography of pixels of a photograph to those of the other."""
    angle, grown = math.radians(rng.uniform(-30, 30)), math.exp(rng.uniform(math.log(0.8), math.log(1.25)))
    cos, sin, middle = grown * math.cos(angle), grown * math.sin(angle), (side - 1) / 2
    to_middle = np.array([[1, 0, -middle], [0, 1, -middle], [0, 0, 1]])
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    tilt, back = np.eye(3), np.eye(3)
    tilt[2, :2] = rng.uniform(-0.15, 0.15, 2) / side
    back[:2, 2] = middle + rng.uniform(-0.1, 0.1, 2) * side
    return back @ turn @ tilt @ to_middle


def retaken(photo: Photo, matrix: np.ndarray, rng: np.random.Generator) -> Photo:
    """What another camera sees: moved, out of focus, in another light, and grainy."""
    side = photo.shape[0]
    seen = cv2.warpPerspective(photo, matrix, (side, side))
    seen = cv2.GaussianBlur(seen, (0, 0), rng.uniform(0.3, 3.0) * side / 1411)
    lit = seen.astype(float) * rng.uniform(0.6, 1.3) + rng.uniform(-20, 30) * (seen > 0)
    return np.clip(lit + rng.normal(0, 3, seen.shape), 0, 255).astype(np.uint8)


def error_px(found: np.ndarray, truth: np.ndarray, side: int) -> float:
    """Mean over what both photographs see."""
    line = np.linspace(0.1, 0.9, 9) * side
    places = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    there = keypoints.apply_homography(truth, places)
    round_field = [np.hypot(*(x - side / 2).T) < 0.48 * side for x in (places, there)]
    both = round_field[0] & round_field[1]
    off = keypoints.apply_homography(found, places[both]) - there[both]
    return float(np.linalg.norm(off, axis=1).mean()) * FULL / side


def peer(query: Photo, reference: Photo) -> np.ndarray | None:
    """The homography of the small images, by scikit-image alone after our own preparation."""
    from skimage.feature import SIFT, match_descriptors
    from skimage.measure import ransac
    from skimage.transform import ProjectiveTransform

    seen = []
    for photo in (query, reference):
        detector = SIFT()
        detector.detect_and_extract(keypoints.preprocess(photo)[0, 0].numpy())
        seen.append((np.asarray(detector.keypoints)[:, ::-1], np.asarray(detector.descriptors)))
    pairs = match_descriptors(seen[0][1], seen[1][1], max_ratio=0.8, cross_check=True)
    ends = seen[0][0][pairs[:, 0]], seen[1][0][pairs[:, 1]]
    model, _ = ransac(ends, ProjectiveTransform, 4, 5.0, max_trials=1000, rng=0)
    return None if model is None or model.params is None else np.array(model.params)


def measure_known(photo: Photo, count: int) -> dict[str, float]:
    """Shares, errors and seconds of ours, and of scikit-image's for the first few."""
    side, errors, refused, seconds = photo.shape[0], [], 0, []
    theirs: dict[str, list[float]] = {"px": [], "s": [], "ours px": [], "ours s": []}
    for k in tqdm(range(count), desc="known maps", disable=not sys.stderr.isatty()):
        rng = np.random.default_rng([7, k])
        truth = known_map(rng, side)
        other = retaken(photo, truth, rng)
        start = time.perf_counter()
        found = keypoints.align(photo, other)
        seconds.append(time.perf_counter() - start)
        refused += not found.accepted
        if found.homography is not None:
            errors.append(error_px(found.homography, truth, side))
        if k < PEER_PAIRS:
            start = time.perf_counter()
            matrix = peer(photo, other)
            theirs["s"].append(time.perf_counter() - start)
            full = keypoints.full_from_working(photo, keypoints.preprocess(photo))
            theirs["px"].append(
                math.inf if matrix is None else error_px(full @ matrix @ np.linalg.inv(full), truth, side)
            )
            theirs["ours s"].append(seconds[-1])
            theirs["ours px"].append(errors[-1] if found.accepted else math.inf)
    return {
        "maps": count,
        "within 5 px": sum(error < RIGHT_PX for error in errors) / count,
        "refused": refused,
        "silently wrong": sum(error > WRONG_PX for error in errors),
        "median px": float(np.median(errors or [math.inf])),
        "worst px": max(errors, default=math.inf),
        "median s": float(np.median(seconds)),
        "scikit-image, median s": float(np.median(theirs["s"])),
        "scikit-image, median px": float(np.median(theirs["px"])),
        "ours on the same, median s": float(np.median(theirs["ours s"])),
        "ours on the same, median px": float(np.median(theirs["ours px"])),
    }


def measure_strangers(photo: Photo, count: int) -> dict[str, float]:
    """How many pairs of two eyes are taken for one, and how many of one eye are refused."""
    taken = refused = 0
    most = 0.0
    for k in tqdm(range(count), desc="strangers", disable=not sys.stderr.isatty()):
        how: dict[str, Any] = {"texture": photo if k % 2 else None}
        one, other = (phantoms.retina_pair(seed, **how) for seed in (1000 + 2 * k, 1001 + 2 * k))
        found = keypoints.align(one.query, other.reference)
        taken += found.accepted
        most = max(most, float(found.inliers.mean()) if len(found.inliers) else 0.0)
        refused += not keypoints.align(one.query, one.reference).accepted
    return {"pairs": count, "taken for one eye": taken, "largest share that agrees": most, "own eyes refused": refused}


# -- a detector ---------------------------------------------------------------------------------------------------
def lessons(eyes: int, seed: int = 5000) -> list[keypoints.Lesson]:
    """Photographs that are labelled at half of their branchings."""
    made = []
    rng = np.random.default_rng(0)
    for k in range(eyes):
        pair = phantoms.retina_pair(seed + k, size=768)
        points = torch.from_numpy(pair.query_branchings).float()
        told = torch.from_numpy(rng.random(len(points)) < TOLD)
        made.append(keypoints.Lesson(f"eye{k:02}", keypoints.preprocess(pair.query)[0], points[told]))
    return made


def measure_trained(eyes: int, epochs: int, tests: dict[str, int]) -> dict[str, Any]:
    """The scores of SIFT and of a network that learned for so many epochs, and how its labels grew."""
    from data_scripts.fire import write_pair

    torch.manual_seed(0)
    network = keypoints.SuperRetina(WIDTHS, DESCRIBES)
    squares = keypoints.cut_lessons(lessons(eyes), size=SQUARE, count=SQUARES)
    start = time.perf_counter()
    history = keypoints.train_keypoints(network, squares, epochs=epochs, plan=PLAN, progress=sys.stderr.isatty())
    seconds = time.perf_counter() - start
    learned = keypoints.learned(network, radius=PLAN.radius, threshold=PLAN.threshold)
    with tempfile.TemporaryDirectory() as folder:
        seed = 3000
        for category, count in tests.items():
            for number in range(1, count + 1):
                pair = phantoms.retina_pair(seed, size=FULL, category=category)
                write_pair(Path(folder), f"{category}{number:02}", pair, seed)
                seed += 1
        ways: dict[str, Callable[[Photo, Photo], Alignment]] = {
            "SIFT": keypoints.align,
            "learned": partial(keypoints.align, extract=learned, ratio=0.9),
            "SIFT, quadratic": partial(keypoints.align, model="quadratic"),
            "learned, quadratic": partial(keypoints.align, extract=learned, ratio=0.9, model="quadratic"),
        }
        rows = []
        for name, way in ways.items():
            scores = keypoints.fire_scores(folder, way, progress=False)
            middle = float(np.median([pair.mean_px for pair in scores.pairs]))
            rows.append({"method": name, "failed": scores.failed, **scores.auc, "mauc": scores.mauc, "px": middle})
    labels = history.values("keypoints")
    return {"seconds": seconds, "epochs": epochs, "labels": [labels[0], labels[-1]], "rows": rows}


# -- write --------------------------------------------------------------------------------------------------------
def bars(report: dict[str, Any]) -> list[str]:
    """What is missed."""
    known, strangers, trained = report["known"], report["strangers"], report["trained"]
    sift, learned = (row["mauc"] for row in trained["rows"][:2])
    checks = {
        f"{known['within 5 px']:.1%} within 5 px": known["within 5 px"] >= RIGHT_SHARE,
        f"{known['silently wrong']} silently wrong": known["silently wrong"] == 0,
        f"{strangers['taken for one eye']} strangers accepted": strangers["taken for one eye"] == 0,
        f"learned {learned:.3f}, SIFT {sift:.3f}": learned >= sift - BEHIND,
        f"{trained['seconds']:.0f} s of training": trained["seconds"] <= MOST_SECONDS,
        f"labels {trained['labels'][0]:.1f} to {trained['labels'][1]:.1f}": trained["labels"][1] > trained["labels"][0],
    }
    for words, met in checks.items():
        print(f"{'ok    ' if met else 'MISSED'} {words}")
    return [words for words, met in checks.items() if not met]


def write(folder: Path, report: dict[str, Any]) -> None:
    """Tables and JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "retina.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = ["# Retinal alignment, measured", "", f"{report['machine']}.", ""]
    for title in ("known", "strangers"):
        lines += [f"| {title} | |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in report[title].items()] + [""]
    trained = report["trained"]
    lines += [
        f"A detector after {trained['epochs']} epochs, {trained['seconds']:.0f} s; labels of a square grew from "
        f"{trained['labels'][0]:.1f} to {trained['labels'][1]:.1f}.",
        "",
        "| method | failed % | AUC S | P | A | mAUC | median px |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in trained["rows"]:
        areas = " | ".join(f"{row[name]:.3f}" for name in ("S", "P", "A", "mauc"))
        lines.append(f"| {row['method']} | {row['failed']:.0f} | {areas} | {row['px']:.2f} |")
    (folder / "retina.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> int:
    import skimage.data

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--epochs", type=int, help=f"default {EPOCHS}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a bar is missed")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    photo = skimage.data.retina()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}"
    quick = options.quick
    report: dict[str, Any] = {"machine": machine}
    report["trained"] = measure_trained(
        2 if quick else EYES,
        options.epochs or (2 if quick else EPOCHS),
        dict.fromkeys(TESTS, 1) if quick else TESTS,
    )
    report["known"] = measure_known(photo, 20 if quick else 200)
    report["strangers"] = measure_strangers(photo, 5 if quick else 50)
    write(options.out, report)
    return int(bool(bars(report)) and options.check)


if __name__ == "__main__":
    sys.exit(main())
