"""What a training noted, an epoch a line."""

from __future__ import annotations

import csv
import io as text
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .. import io

if TYPE_CHECKING:
    import pandas as pd

Record = dict[str, float]


@dataclass
class History:
    """A line for each epoch: epoch, seconds, lr, loss and its terms, and of validation valid_loss, valid_dice.

    Attributes:
        stopped: why it ended before its last epoch, in words; empty if it did not.
    """

    records: list[Record] = field(default_factory=list)
    stopped: str = ""

    @property
    def table(self) -> pd.DataFrame:
        """A row an epoch."""
        import pandas as pd

        return pd.DataFrame(self.records)

    def values(self, name: str) -> list[float]:
        """One column; epochs that have no such value are left out.

        Raises: ValueError if none has.
        """
        found = [record[name] for record in self.records if name in record]
        if not found:
            known = sorted({key for record in self.records for key in record})
            raise ValueError(f"no epoch has {name!r}; there are {', '.join(known) or 'none yet'}.")
        return found

    def best(self, name: str) -> int:
        """The number of the epoch with the lowest value; the first of several."""
        return int(min((r for r in self.records if name in r), key=lambda r: _finite(r[name]))["epoch"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """As CSV, whole or not at all."""
        columns = list(dict.fromkeys(key for record in self.records for key in record))
        written = text.StringIO()
        writer = csv.DictWriter(written, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        with io.write_atomically(path) as temporary:
            temporary.write_text(written.getvalue(), encoding="utf-8", newline="\n")


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


class Board:
    """The history as TensorBoard shows it: a chart for each column, with a curve of training and one of validation.

    What an earlier run left in the folder is told anew from `history`, so that no epoch is there twice.

    Raises: ValueError if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, history: History) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "TensorBoard is not installed; pip install 'reglib[tensorboard]', or do without: history.csv holds the "
                "same numbers."
            ) from None
        for old in folder.glob("*/events.out.tfevents.*"):
            old.unlink()
        self._writers = {split: SummaryWriter(str(folder / split)) for split in ("train", "valid")}
        for record in history.records:
            self.write(record)

    def write(self, record: Record) -> None:
        """One epoch more."""
        for name, value in record.items():
            split = "valid" if name.startswith("valid_") else "train"
            if name != "epoch":
                self._writers[split].add_scalar(name.removeprefix("valid_"), value, int(record["epoch"]))
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
