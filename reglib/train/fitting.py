"""The loop: batches in, a trained network and its history out."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import io
from ..networks import Prediction
from .batches import Batch, ask, scores
from .checkpoints import (
    NAME,
    Checkpoint,
    all_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from .history import Board, History, Record

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)
Objective = Callable[[Batch, Prediction], Any]  # gives a mapping of names to tensors of one number
HISTORY, BEST, SAVE, BOARD = "history.csv", "best.pt", "save", "tensorboard"
LAUNCHED = "LT_CLI_USED"  # by `fabric run`, which has chosen devices and precision
SAVED = "what was saved is of the epoch before"
SIBLINGS = "LOCAL_WORLD_SIZE"  # processes on this machine, where `torchrun` has made them


def fit(
    network: nn.Module,
    batches: Any,
    objective: Objective,
    *,
    epochs: int,
    out: str | os.PathLike[str] | None = None,
    valid: Any = None,
    lr: float = 1e-4,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    clip: float | None = None,
    accumulate: int = 1,
    patience: int | None = None,
    monitor: str | None = None,
    save_every: int = 0,
    resume: bool = True,
    tensorboard: bool = False,
    device: str = "auto",
    precision: Any = "32-true",
    progress: bool = True,
) -> History:
    """Train a network, in place.

    Args:
        batches: of `reglib.data.loader`; each iteration is an epoch.
        objective: called as (batch, prediction), gives the terms of the loss by name, weights included.
        epochs: how many in all, those of an earlier run in `out` counted.
        out: folder for history.csv, best.pt and, in save/, what a stopped run goes on from; None writes nothing.
        valid: batches that are only looked at, after every epoch.
        optimizer: makes one from the parameters; by default Adam with `lr`.
        scheduler: makes one from the optimizer; it takes a step an epoch.
        clip: the gradient is shortened to this norm.
        accumulate: batches whose gradients are averaged into one step.
        patience: end after so many epochs in which `monitor` found no new low.
        monitor: a column of the history, low is good; by default valid_loss, or loss without `valid`.
        save_every: keep a checkpoint of every so many epochs; 0 keeps the last alone.
        resume: go on from the last checkpoint in `out`, to the losses of a run that was never stopped; False begins
            anew, and with its first epoch the checkpoints of the earlier run go.
        tensorboard: also show each epoch in TensorBoard, from `out`/tensorboard; needs the extra of that name.
        device: "auto", "cpu" or "cuda".
        precision: of Lightning Fabric, such as "bf16-mixed".

    `fabric run --devices 2 script.py` trains in several processes; each takes its share of every epoch's pairs.
    A keyboard interrupt ends it with the history so far.

    Raises: ValueError before any work for what does not fit, or for a batch with NaN; FloatingPointError with the names
        of the batch if the loss diverges; MemoryError with what to do. What was saved stays.
    """
    plan = _Plan(epochs, clip, accumulate, patience, monitor or ("loss" if valid is None else "valid_loss"), save_every)
    fabric = _fabric(device, precision)
    made = (optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=lr)))(network.parameters())
    schedule = None if scheduler is None else scheduler(made)
    history, folder = History(), None if out is None else io.require_writable(Path(out))
    if folder is not None and resume:
        _go_on(folder / SAVE, network, made, schedule, history)
    board = None
    if tensorboard and folder is None:
        raise ValueError("tensorboard=True writes into out, and there is none; give out=....")
    if tensorboard and folder is not None and fabric.is_global_zero:
        board = Board(folder / BOARD, history)
    _share_out(batches, fabric)
    trained, stepper = fabric.setup(network, made)
    run = _Run(fabric, trained, stepper, schedule, objective, plan, history, folder, network)
    silent = not (progress and fabric.is_global_zero)
    with tqdm(total=epochs, initial=len(history.records), unit="epoch", disable=silent) as bar:
        try:
            for epoch in range(len(history.records), epochs):
                record = run.epoch(epoch, batches, valid)
                if board is not None:
                    board.write(record)
                told = {k: f"{v:.4g}" for k, v in record.items() if k not in ("epoch", "seconds", "lr")}
                bar.set_postfix(told)
                terms = ", ".join(f"{name} {value}" for name, value in told.items())
                logger.info("epoch %d of %d, %.3g s: %s", epoch + 1, epochs, record["seconds"], terms)
                bar.update()
                if run.has_waited():
                    history.stopped = f"{plan.monitor} found no new low in {patience} epochs"
                    break
        except KeyboardInterrupt:
            history.stopped = f"interrupted in epoch {len(history.records) + 1}; it is not counted"
        finally:
            if board is not None:
                board.close()
    return history


@dataclass(frozen=True)
class _Plan:
    """The numbers of a training, checked."""

    epochs: int
    clip: float | None
    accumulate: int
    patience: int | None
    monitor: str
    save_every: int

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.accumulate < 1 or self.save_every < 0:
            raise ValueError(
                "epochs and save_every must be at least 0 and accumulate at least 1; got "
                f"epochs={self.epochs}, save_every={self.save_every}, accumulate={self.accumulate}."
            )
        if (self.clip is not None and self.clip <= 0) or (self.patience is not None and self.patience < 1):
            raise ValueError(f"clip must be above 0 and patience at least 1; got {self.clip} and {self.patience}.")


def _fabric(device: str, precision: Any) -> Fabric:
    """What runs the loop on a device, in a precision, in several processes if it was launched so."""
    from lightning_fabric import Fabric

    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f'device must be "auto", "cpu" or "cuda"; got "{device}".')
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError('device is "cuda", but torch finds no GPU here; use "auto" or "cpu".')
    if os.environ.get(LAUNCHED):
        return Fabric()
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    fabric = Fabric(accelerator=kind, devices=int(os.environ.get(SIBLINGS, 1)), precision=precision)
    fabric.launch()
    return fabric


def _share_out(batches: Any, fabric: Fabric) -> None:
    """Each process takes its share of an epoch's pairs.

    Raises: ValueError if the batches cannot be shared out.
    """
    if fabric.world_size == 1:
        return
    sampler: Any = getattr(batches, "sampler", None)
    if not hasattr(sampler, "replicas"):
        raise ValueError(
            f"{fabric.world_size} processes must share the pairs; make the batches with reglib.data.loader, whose "
            "sampler can."
        )
    sampler.rank, sampler.replicas = fabric.global_rank, fabric.world_size


def _go_on(folder: Path, network: nn.Module, optimizer: Any, scheduler: Any, history: History) -> None:
    """Put everything where the last checkpoint of a folder left it, if there is one."""
    path = latest_checkpoint(folder)
    if path is None:
        return
    found = load_checkpoint(path, network)
    optimizer.load_state_dict(found.optimizer)
    if scheduler is not None:
        scheduler.load_state_dict(found.scheduler)
    history.records[:] = found.history
    logger.info("goes on after epoch %d, from %s", len(history.records), path)
    restore_random_states(found.random)


@dataclass
class _Run:
    """A training that is going on."""

    fabric: Fabric
    trained: Any
    optimizer: Any
    scheduler: Any
    objective: Objective
    plan: _Plan
    history: History
    folder: Path | None
    network: nn.Module

    def epoch(self, epoch: int, batches: Any, valid: Any) -> Record:
        """One epoch, its validation, and what is written of it."""
        begin = time.perf_counter()
        record: Record = {"epoch": float(epoch + 1), "lr": float(self.optimizer.param_groups[0]["lr"])}
        record |= self._train(epoch, batches)
        if valid is not None:
            found = evaluate(self.trained, valid, self.objective, device=self.fabric.device)
            record |= {f"valid_{name}": value for name, value in found.items()}
        if self.scheduler is not None:
            self.scheduler.step()
        record["seconds"] = time.perf_counter() - begin
        self.history.records.append(record)
        if self.plan.monitor not in record:
            raise ValueError(f"monitor must be one of {', '.join(record)}; got {self.plan.monitor!r}.")
        if self.folder is not None and self.fabric.is_global_zero:
            self._save(epoch + 1)
        return record

    def _train(self, epoch: int, batches: Any) -> Record:
        """The mean of each term over an epoch's batches."""
        if hasattr(getattr(batches, "sampler", None), "epoch"):
            batches.sampler.epoch = epoch
        self.trained.train()
        totals: dict[str, Tensor] = {}
        count = 0
        for batch, last in _with_last(batches):
            count += 1
            steps = last or count % self.plan.accumulate == 0
            with _sentence_for_lack_of_memory(Batch(batch), epoch):
                terms = self._step(Batch(batch).to(self.fabric.device), epoch, steps)
            totals = {name: totals.get(name, 0.0) + value for name, value in terms.items()}
        if count == 0:
            raise ValueError("there is no batch in an epoch; are there fewer pairs than batch_size?")
        means: Any = self.fabric.all_reduce({name: x / count for name, x in totals.items()}, reduce_op="mean")
        return {name: float(value) for name, value in means.items()}

    def _step(self, batch: Batch, epoch: int, steps: bool) -> dict[str, Tensor]:
        """Add a batch's gradient and, if it is time, take a step; returns the terms and their sum."""
        _require_finite(batch)
        with self.fabric.no_backward_sync(self.trained, enabled=not steps):
            terms = self.objective(batch, ask(self.trained, batch))
            loss = total(terms)
            logger.debug("epoch %d, %s: loss %.6g", epoch + 1, batch.names, float(loss.detach()))
            told = f"in epoch {epoch + 1}, at {batch.names} ({_in_words(terms)})"
            if not bool(loss.detach().isfinite()):
                raise FloatingPointError(
                    f"the loss became {float(loss.detach())} {told}; lower lr, or clip the gradient; {SAVED}."
                )
            self.fabric.backward(loss / self.plan.accumulate)
        if steps:
            if self.plan.clip is not None:
                self._clip(self.plan.clip, told)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {"loss": loss.detach(), **{name: value.detach() for name, value in terms.items()}}

    def _clip(self, most: float, told: str) -> None:
        norm: Any = self.fabric.clip_gradients(self.trained, self.optimizer, max_norm=most, error_if_nonfinite=False)
        if not bool(norm.isfinite()):
            raise FloatingPointError(
                f"the gradient became {float(norm)} {told}; lower lr, or train in 32 bits if it was in 16; {SAVED}."
            )

    def has_waited(self) -> bool:
        """Whether the last low of `monitor` is too long ago."""
        best = self.history.best(self.plan.monitor)
        return self.plan.patience is not None and len(self.history.records) - best >= self.plan.patience

    def _save(self, epoch: int) -> None:
        """The history, the best network so far, and what to go on from; an older one is removed once it is written."""
        assert self.folder is not None
        state, records = self.network.state_dict(), tuple(self.history.records)
        if self.history.best(self.plan.monitor) == epoch:
            save_checkpoint(self.folder / BEST, Checkpoint(state, epoch, history=records))
        scheduler = {} if self.scheduler is None else self.scheduler.state_dict()
        whole = Checkpoint(state, epoch, self.optimizer.state_dict(), scheduler, records, random_states())
        name, others = NAME.format(epoch), all_checkpoints(self.folder / SAVE)
        save_checkpoint(self.folder / SAVE / name, whole)
        self.history.save(self.folder / HISTORY)
        for other in [path for path in others if path.name > name]:
            other.unlink()  # of a run that was not to be gone on from
        before = max((path for path in others if path.name < name), default=None)
        every = self.plan.save_every
        if before is not None and not (every and _epoch_of(before) % every == 0):
            before.unlink()


def _epoch_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _in_words(terms: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in terms.items())


def total(terms: Any) -> Tensor:
    """The loss of an objective's terms.

    Raises: ValueError if they are not named numbers.
    """
    if not isinstance(terms, Mapping) or not terms or not all(isinstance(x, Tensor) for x in terms.values()):
        raise ValueError(
            'the objective must return its terms by name, such as {"lncc": lncc_loss(...)}, tensors of one number; got '
            f"{type(terms).__name__}."
        )
    several = [name for name, value in terms.items() if value.numel() != 1]
    if several:
        raise ValueError(
            f"each term must be one number; {several[0]} is {tuple(terms[several[0]].shape)}; take its mean."
        )
    return torch.stack([value.reshape(()) for value in terms.values()]).sum()


@contextmanager
def _sentence_for_lack_of_memory(batch: Batch, epoch: int) -> Iterator[None]:
    """What torch says of it in a page of numbers, in one sentence with what to do."""
    try:
        yield
    except RuntimeError as error:  # of which a GPU's is a kind; the CPU has none of its own
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        size = " x ".join(map(str, batch["fixed"].shape))
        raise MemoryError(
            f"out of memory in epoch {epoch + 1}, at {batch.names} (batch x channels x sizes: {size}); halve the batch "
            'size, give precision="bf16-mixed" or smaller images; train.estimate_memory foresees what a step takes.'
        ) from None


def _require_finite(batch: Batch) -> None:
    for name in ("fixed", "moving", "fixed_label", "moving_label"):
        if name in batch and not bool(batch[name].sum().isfinite()):
            raise ValueError(f"{name} of {batch.names} holds NaN or infinity; reglib data inspect finds the file.")


def _with_last(batches: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Each batch, and whether it is the last."""
    waiting: list[Any] = []
    for batch in batches:
        if waiting:
            yield waiting.pop(), False
        waiting.append(batch)
    if waiting:
        yield waiting.pop(), True


# -- without training ---------------------------------------------------------------------------------------------
@torch.no_grad()
def evaluate(
    network: nn.Module, batches: Any, objective: Objective | None = None, *, device: Any = None
) -> dict[str, float]:
    """The mean over all pairs of what `scores` finds and, with an objective, of its terms and their sum, `loss`."""
    was = network.training
    network.eval()
    found: list[dict[str, float]] = []
    for each in batches:
        batch = Batch(each) if device is None else Batch(each).to(device)
        prediction = ask(network, batch)
        pairs = scores(batch, prediction)
        if objective is not None:
            terms = objective(batch, prediction)
            values = {"loss": float(total(terms)), **{name: float(value) for name, value in terms.items()}}
            pairs = [pair | values for pair in pairs]
        found += pairs
    network.train(was)
    names = dict.fromkeys(name for pair in found for name in pair)
    return {name: _mean([pair[name] for pair in found if name in pair]) for name in names}


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def overfit_one_pair(
    network: nn.Module, batch: Mapping[str, Any], objective: Objective, *, steps: int = 100, lr: float = 1e-3
) -> History:
    """Train on one batch alone: what cannot learn that will learn nothing. A record is a step."""
    history = fit(network, [dict(batch)], objective, epochs=steps, lr=lr, device="cpu", progress=False)
    return history
