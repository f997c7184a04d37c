"""Teaching SuperRetina where keypoints are, from few labelled photographs: its labels grow while it learns.

What the network finds on a photograph is held for a keypoint too if it finds it again on another view of it, at the
same place, and describes it alike. Such places are noted on a map of values; those that come back stay.

Source: Liu et al. 2022, doi:10.1007/978-3-031-19803-8_35, progressive keypoint expansion; constants as in its published
configuration.   Differs: views are true similarities, or homographies; of too many candidates the surest are kept, not
the first line by line; nothing is drawn by lot but from `seed`.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from .. import field, io
from .network import STRIDE, Seen, SuperRetina
from .photos import load_photo, preprocess
from .points import describe, detect, suppress

if TYPE_CHECKING:
    from ..train import History

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pgm")
DETECTOR, HISTORY = "detector.pt", "history.csv"
LABELLED = 10.0  # what a labelled place counts for where the surest are chosen
SMOOTH = 1e-3  # of Dice


@dataclass(frozen=True)
class Lesson:
    """A preprocessed photograph, and its labelled keypoints (n, 2), (x, y) in its pixels; None if it has no labels."""

    name: str
    image: Float[Tensor, "1 h w"]
    points: Float[Tensor, "n 2"] | None = None


@dataclass(frozen=True)
class Views:
    """The most that may happen to a second view: turn, shift as a share of the side, scales, and perspective."""

    turn_deg: float
    shift: float
    scale: tuple[float, float]
    perspective: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The numbers of a training, as published.

    Args:
        batch, lr: photographs a step, and Adam's rate.
        expands_from: the first epoch in which labels grow.
        radius, threshold, border: what is found, as for `detect`.
        again: how sure the network must be at the same place of another view.
        alike: share of the distance to the second nearest descriptor below which the nearest is the same place.
        most: candidates of a photograph.
        area: pixels in which a value belongs to a place already there.
        gain, near, decay: what a new place counts for, one beside it, and what one loses that is not found again.
        kernel, sigma: of the bump that a keypoint is in the label, pixels and standard deviations.
        margin: of the triplets.
        agree: weight of the loss between what is found on a photograph and on its view; to find nothing pleases it too.
        too_many: keypoints of a photograph beyond which a batch teaches no descriptors.
        detector_views, descriptor_views: of the second photographs.
        jitter: how often the contrast of a view for descriptors is changed.
    """

    batch: int = 4
    lr: float = 1e-4
    expands_from: int = 0
    radius: int = 10
    threshold: float = 0.1
    border: int = 8
    again: float = 0.5
    alike: float = 0.7
    most: int = 1024
    area: int = 8
    gain: int = 5
    near: int = 1
    decay: int = 1
    kernel: int = 13
    sigma: float = 2.0
    margin: float = 0.8
    agree: float = 1.0
    too_many: int = 1000
    detector_views: Views = Views(15.0, 0.2, (0.9, 1.35))
    descriptor_views: Views = Views(3.0, 0.1, (0.9, 1.1))
    jitter: float = 0.6


# -- what to learn from -------------------------------------------------------------------------------------------
def load_lessons(
    folder: str | os.PathLike[str],
    *,
    split: str | None = None,
    auxiliary: str | os.PathLike[str] | None = None,
    size: int | tuple[int, int] = (768, 768),
) -> list[Lesson]:
    """Photographs in the published layout: ImageData/, Annotations/NAME.txt with x and y from 0 to 1 a line.

    Args:
        split: a file of ImageSets/, whose lines are "picture, annotation"; without it all pictures.
        auxiliary: a folder of pictures without labels.
        size: as for `preprocess`.

    Raises: FileNotFoundError or ValueError for what is missing or no annotation.
    """
    folder = Path(folder)
    pictures = _pictures(folder / "ImageData")
    if split is not None:
        lines = (folder / "ImageSets" / split).read_text(encoding="utf-8").splitlines()
        named = [line.split(",")[0].strip() for line in lines if line.strip()]
        pictures = [folder / "ImageData" / name for name in named]
    found = [_lesson(path, folder / "Annotations" / f"{path.stem}.txt", size) for path in pictures]
    if auxiliary is not None:
        found += [_lesson(path, None, size) for path in _pictures(Path(auxiliary))]
    return found


def _pictures(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise FileNotFoundError(f"{folder} holds no pictures ({', '.join(PICTURES)}). Check the path.")
    return found


def _lesson(picture: Path, annotation: Path | None, size: int | tuple[int, int]) -> Lesson:
    image = preprocess(load_photo(picture), size=size)[0]
    if annotation is None or not annotation.is_file():
        return Lesson(picture.stem, image)
    lines = [line.split() for line in annotation.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        shares = np.array([[float(word) for word in line] for line in lines]).reshape(len(lines), 2)
    except ValueError:
        raise ValueError(f"{annotation} must hold x and y, from 0 to 1, a line.") from None
    if shares.size and (shares.min() < 0 or shares.max() > 1):
        raise ValueError(f"{annotation}: x and y must be from 0 to 1; they are {shares.min():g} to {shares.max():g}.")
    sides = torch.tensor([image.shape[2], image.shape[1]], dtype=torch.float32)
    return Lesson(picture.stem, image, torch.from_numpy(shares).float() * sides - 0.5)


def cut_lessons(lessons: Sequence[Lesson], *, size: int, count: int, seed: int = 0) -> list[Lesson]:
    """So many squares of each photograph, `size` pixels wide, at places drawn by lot, with the labels inside.

    A step on a few squares of many photographs teaches as much as one on a whole photograph, and takes less time.

    Raises: ValueError for squares larger than a photograph, or sides that are no multiples of 8.
    """
    rng = np.random.default_rng([seed, 83])
    cut = []
    for lesson in lessons:
        height, width = lesson.image.shape[1:]
        if size % STRIDE or not 0 < size <= min(height, width):
            raise ValueError(
                f"size must be a multiple of {STRIDE}, at most the {min(height, width)} pixels of {lesson.name}; got "
                f"{size}."
            )
        for k in range(count):
            x, y = (int(rng.integers(0, side - size + 1)) for side in (width, height))
            points = lesson.points
            if points is not None:
                moved_there = points - torch.tensor([x, y])
                points = moved_there[((moved_there > -0.5) & (moved_there < size - 0.5)).all(1)]
            cut.append(Lesson(f"{lesson.name}_{k}", lesson.image[:, y : y + size, x : x + size].contiguous(), points))
    return cut


def label_of(points: Float[Tensor, "n 2"], shape: Sequence[int]) -> Bool[Tensor, "h w"]:
    """Which pixels of an image (h, w) are keypoints."""
    height, width = shape
    at = points.round().long()
    inside = (at >= 0).all(1) & (at[:, 0] < width) & (at[:, 1] < height)
    mask = torch.zeros(height, width, dtype=torch.bool, device=points.device)
    mask[at[inside, 1], at[inside, 0]] = True
    return mask


def bumps(mask: Bool[Tensor, "b h w"], *, kernel: int = 13, sigma: float = 2.0) -> Float[Tensor, "b 1 h w"]:
    """A bump at every keypoint, 1 at its top and 0 at the corners of its square; where they overlap 1 at most."""
    share = (2 * sigma + 1) / kernel
    edges = torch.linspace(-sigma - share / 2, sigma + share / 2, kernel + 1, dtype=torch.float64)
    line = torch.special.ndtr(edges).diff().sqrt()
    bump = torch.outer(line, line)
    bump = ((bump - bump.min()) / (bump.max() - bump.min())).float().to(mask.device)
    return functional.conv2d(mask.float()[:, None], bump[None, None], padding=kernel // 2).clamp(max=1)


# -- second views -------------------------------------------------------------------------------------------------
def draw_view(views: Views, shape: Sequence[int], rng: np.random.Generator) -> Float[Tensor, "3 3"]:
    """The matrix from pixels (x, y) of a view to those of the image, about the middle."""
    height, width = shape
    angle, grown = math.radians(rng.uniform(-1, 1) * views.turn_deg), rng.uniform(*views.scale)
    cos, sin = math.cos(angle) / grown, math.sin(angle) / grown
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    shift = rng.uniform(-1, 1, 2) * views.shift * np.array([width, height])
    tilt = rng.uniform(-1, 1, 2) * views.perspective / max(height, width)
    to_middle, back = np.eye(3), np.eye(3)
    to_middle[:2, 2], back[:2, 2] = -middle, middle - shift
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [tilt[0], tilt[1], 1]])
    return torch.from_numpy(back @ turn @ to_middle).float()


def moved(matrix: Float[Tensor, "3 3"], points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Places (x, y) under a matrix."""
    ahead = torch.cat([points, torch.ones_like(points[:, :1])], dim=1) @ matrix.to(points).T
    return ahead[:, :2] / ahead[:, 2:]


def read_through(image: Float[Tensor, "b c h w"], matrices: Sequence[Tensor]) -> Float[Tensor, "b c h w"]:
    """Each image read where a matrix takes the pixels of the result; 0 outside."""
    height, width = image.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([columns, rows], dim=-1).reshape(-1, 2).to(image)
    seen = [
        field.sample(image[k : k + 1], moved(matrix, at).flip(1)[None], padding="zeros")
        for k, matrix in enumerate(matrices)
    ]
    return torch.cat(seen).reshape(image.shape)


def _jittered(images: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Some with another brightness and contrast."""
    changed = []
    for image in images:
        if rng.random() < share:
            bright, steep = rng.uniform(0.6, 1.4), rng.uniform(0.7, 1.3)
            image = ((image * bright - image.mean()) * steep + image.mean()).clamp(0, 1)
        changed.append(image)
    return torch.stack(changed)


# -- labels that grow ---------------------------------------------------------------------------------------------
def found_again(seen: Seen, other: Seen, view: Float[Tensor, "3 3"], plan: Plan) -> Float[Tensor, "n 2"]:
    """What the network finds on an image, and on a view of it at the same place, and describes alike."""
    height, width = seen.probability.shape[2:]
    points, scores = detect(seen.probability, radius=plan.radius, threshold=plan.threshold, border=plan.border)
    there = moved(torch.linalg.inv(view.double()).float(), points)
    at = there.round().long()
    inside = (at >= 0).all(1) & (at[:, 0] < width) & (at[:, 1] < height)
    points, there, at, scores = points[inside], there[inside], at[inside], scores[inside]
    sure = other.probability[0, 0, at[:, 1], at[:, 0]] >= plan.again
    points, there, scores = points[sure], there[sure], scores[sure]
    if len(points) > plan.most:
        best = scores.argsort(descending=True, stable=True)[: plan.most].sort().values
        points, there = points[best], there[best]
    if len(points) < 2:
        return points[:0]
    apart = torch.cdist(describe(seen.descriptors, points), describe(other.descriptors, there))
    nearest = apart.topk(2, dim=1, largest=False)
    own = nearest.indices[:, 0] == torch.arange(len(points), device=points.device)
    return points[own & (nearest.values[:, 0] < plan.alike * nearest.values[:, 1])]


def noted(values: np.ndarray, points: Sequence[Sequence[int]], plan: Plan) -> np.ndarray:
    """A map of values (h, w) after an epoch: what was found again has gained, everything else lost.

    A window reaches `area` / 4 to each side, its far edge left out.
    """
    before, after, reach = values, values.copy(), plan.area // 4
    for x, y in points:
        window = after[max(y - reach, 0) : y + reach, max(x - reach, 0) : x + reach]
        if after[y, x] != 0 or not window.any():
            after[y, x] += plan.gain
        else:
            window[window > 0] += plan.near
    still = (after == before) & (before > 0)
    after[still] -= np.minimum(plan.decay, after[still])
    return after


def grown(values: np.ndarray, label: Bool[Tensor, "h w"], plan: Plan) -> Bool[Tensor, "h w"]:
    """The labelled keypoints and those of the map of values that have lasted, none too close to another."""
    worth = torch.from_numpy(values.astype(np.float32)).to(label.device)[None, None]
    lasted = suppress(worth, 2 * plan.area, plan.gain - 0.5)[0, 0]
    together = torch.where(label, 1.0, 0.5 * lasted.float())[None, None]
    return label | suppress(together, plan.radius, plan.threshold)[0, 0]


# -- losses -------------------------------------------------------------------------------------------------------
def pooled_dice_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of all pixels of a batch at once, with squares below."""
    both = 2 * (prediction * target).sum() + SMOOTH
    return 1 - both / (prediction.square().sum() + target.square().sum() + SMOOTH)


def triplet_loss(
    anchor: Float[Tensor, "n d"],
    positive: Float[Tensor, "n d"],
    rng: np.random.Generator,
    *,
    margin: float = 0.8,
) -> Tensor:
    """Descriptors of one place alike, of others not: the hardest other one, and one drawn at random.

    mean max(0, margin + d(a, p) - (d(a, h) + d(a, r)) / 2) + mean <a, h>^2 + mean <a, r>^2, with d = 1 - cosine.

    Source: Zhang et al. 2017, doi:10.1109/ICCV.2017.492, whose spread-out term the squares are.
    """
    n = len(anchor)
    with torch.no_grad():
        apart = torch.cdist(anchor, positive)
        apart.fill_diagonal_(math.inf)
        hard = apart.argmin(1)
    other = (np.arange(n) + rng.integers(1, n, n)) % n if n > 1 else np.zeros(n, dtype=np.int64)
    drawn = torch.from_numpy(other).to(anchor.device)
    like = (anchor * positive).sum(1)
    unlike = [(anchor * positive[k]).sum(1) for k in (hard, drawn)]
    hinge = (margin + (1 - like) - (2 - unlike[0] - unlike[1]) / 2).clamp(min=0)
    return hinge.mean() + unlike[0].square().mean() + unlike[1].square().mean()


# -- the training -------------------------------------------------------------------------------------------------
Watcher = Callable[[int, Mapping[str, Tensor]], object]  # called with the epoch and the keypoints of each photograph


def train_keypoints(
    network: SuperRetina,
    lessons: Sequence[Lesson],
    *,
    epochs: int,
    plan: Plan = Plan(),
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    resume: bool = True,
    watch: Watcher | None = None,
    progress: bool = True,
) -> History:
    """Train a network, in place; photographs without labels teach it descriptors alone.

    Args:
        lessons: of one size.
        epochs: how many in all, those of an earlier run in `out` counted.
        out: folder for history.csv and detector.pt, a checkpoint that a stopped run goes on from, to the same losses.
        watch: called after each epoch with its number and what each labelled photograph's keypoints now are, (n, 2).

    Returns: for each epoch loss, detector, descriptor, and `keypoints`, how many a labelled photograph has on average.

    Raises: ValueError before any work if there is nothing to learn from; FloatingPointError if the loss diverges.
    """
    from ..train import History

    _checked(lessons)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on CPUs
    optimizer = torch.optim.Adam(network.parameters(), lr=plan.lr)
    known: dict[str, np.ndarray] = {}
    history = History()
    folder = None if out is None else io.require_writable(Path(out))
    if folder is not None and resume and (folder / DETECTOR).exists():
        _go_on(folder / DETECTOR, network, optimizer, known, history)
    with tqdm(total=epochs, initial=len(history.records), unit="epoch", disable=not progress) as bar:
        for epoch in range(len(history.records), epochs):
            rng = np.random.default_rng([seed, epoch, 82])
            found: dict[str, list[float]] = {}
            labels: dict[str, Tensor] = {}
            order = rng.permutation(len(lessons))
            batches = [order[k : k + plan.batch] for k in range(0, len(order), plan.batch)]
            for batch in batches:
                terms = _step(network, optimizer, [lessons[k] for k in batch], known, labels, plan, epoch, rng)
                for name, value in terms.items():
                    found.setdefault(name, []).append(value)
            count = sum(map(len, labels.values())) / max(len(labels), 1)
            means = {name: sum(values) / len(values) for name, values in found.items()}
            history.records.append({"epoch": epoch + 1.0, **means, "keypoints": count})
            if folder is not None:
                _save(folder, network, optimizer, known, history)
            bar.set_postfix({name: f"{value:.4g}" for name, value in history.records[-1].items() if name != "epoch"})
            bar.update()
            if watch is not None:
                watch(epoch + 1, labels)
    return history


def _checked(lessons: Sequence[Lesson]) -> None:
    if not any(lesson.points is not None and len(lesson.points) for lesson in lessons):
        raise ValueError("no photograph has labelled keypoints; at least one must.")
    shapes = {tuple(lesson.image.shape) for lesson in lessons}
    if len(shapes) > 1:
        raise ValueError(
            f"photographs must be of one size; got {sorted(shapes)}; load_lessons(size=(768, 768)) does so."
        )
    names = [lesson.name for lesson in lessons]
    if len(set(names)) < len(names):
        raise ValueError("every photograph needs a name of its own; some are there twice.")


def _step(
    network: SuperRetina,
    optimizer: torch.optim.Optimizer,
    lessons: Sequence[Lesson],
    known: dict[str, np.ndarray],
    labels: dict[str, Tensor],
    plan: Plan,
    epoch: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """One step; notes in `known` what was found again, and in `labels` what is now held for keypoints."""
    network.train()
    images = torch.stack([lesson.image for lesson in lessons]).to(next(network.parameters()))
    shape = images.shape[2:]
    seen = network(images)
    views = [draw_view(plan.detector_views, shape, rng) for _ in lessons]
    with torch.no_grad():
        other = network(read_through(images, views))
        back = read_through(other.probability, [torch.linalg.inv(view.double()).float() for view in views])
    masks, taught = [], [k for k, lesson in enumerate(lessons) if lesson.points is not None]
    for k in taught:
        points = lessons[k].points
        assert points is not None
        mask = label_of(points, shape).to(images.device)
        if epoch >= plan.expands_from:
            pair = [Seen(*(x[k : k + 1].detach() for x in each)) for each in (seen, other)]
            again = found_again(pair[0], pair[1], views[k], plan).round().long().tolist()
            values = known.get(lessons[k].name, np.zeros(tuple(shape), np.int16))
            known[lessons[k].name] = noted(values, again, plan)
            mask = grown(known[lessons[k].name], mask, plan)
        masks.append(mask)
        labels[lessons[k].name] = mask.nonzero().flip(1).float()
    detector = images.new_zeros(())
    if taught:
        target = bumps(torch.stack(masks), kernel=plan.kernel, sigma=plan.sigma)
        own = seen.probability[taught]
        detector = pooled_dice_loss(own, target) + plan.agree * pooled_dice_loss(own, back[taught])
    descriptor = _descriptor_loss(network, images, seen, lessons, plan, rng)
    loss = detector + descriptor
    if not bool(loss.detach().isfinite()):
        names = ", ".join(lesson.name for lesson in lessons)
        raise FloatingPointError(
            f"the loss became {float(loss.detach())} in epoch {epoch + 1}, at {names}; lower Plan(lr=...)."
        )
    if loss.requires_grad:  # no labels, and nothing found to describe: there is nothing to learn yet
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    terms = {"loss": loss, "descriptor": descriptor} | ({"detector": detector} if taught else {})
    return {name: float(value.detach()) for name, value in terms.items()}


def _descriptor_loss(
    network: SuperRetina, images: Tensor, seen: Any, lessons: Sequence[Lesson], plan: Plan, rng: np.random.Generator
) -> Tensor:
    """Of keypoints and their places in another view, whose contrast is changed now and then."""
    shape = images.shape[2:]
    views = [draw_view(plan.descriptor_views, shape, rng) for _ in lessons]
    other = network(_jittered(read_through(images, views), plan.jitter, rng))
    anchors, positives = [], []
    for k, lesson in enumerate(lessons):
        probability = seen.probability[k : k + 1].detach().clone()
        if lesson.points is not None:
            probability[0, 0, label_of(lesson.points, shape)] = LABELLED
        points, _ = detect(probability, radius=plan.radius, threshold=plan.threshold, border=plan.border)
        there = moved(torch.linalg.inv(views[k].double()).float(), points)
        inside = (there >= 0).all(1) & (there[:, 0] <= shape[1] - 1) & (there[:, 1] <= shape[0] - 1)
        if int(inside.sum()) > plan.too_many:
            return images.new_zeros(())
        if int(inside.sum()) > 1:
            anchors.append(describe(seen.descriptors[k : k + 1], points[inside]))
            positives.append(describe(other.descriptors[k : k + 1], there[inside]))
    if not anchors:
        return images.new_zeros(())
    losses = [triplet_loss(a, p, rng, margin=plan.margin) * len(a) for a, p in zip(anchors, positives, strict=True)]
    return torch.stack(losses).sum() / sum(map(len, anchors))


def _save(
    folder: Path, network: SuperRetina, optimizer: torch.optim.Optimizer, known: dict[str, np.ndarray], history: History
) -> None:
    state = {
        "net": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "values": {name: torch.from_numpy(values) for name, values in known.items()},
        "history": history.records,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with io.write_atomically(folder / DETECTOR) as temporary:
        torch.save(state, temporary)
    history.save(folder / HISTORY)


def _go_on(
    path: Path,
    network: SuperRetina,
    optimizer: torch.optim.Optimizer,
    known: dict[str, np.ndarray],
    history: History,
) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError) as error:
        raise ValueError(
            f"{path} is not of this training, or cut off ({error}); choose another folder, or resume=False."
        ) from None
    known |= {name: values.numpy() for name, values in state["values"].items()}
    history.records[:] = state["history"]
