"""Scans that are read once, in memory or on disk, by MONAI's data sets. Importing this takes seconds, as MONAI does."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data.dataset import CacheDataset, PersistentDataset
from monai.transforms.transform import Transform

from ..grid import Grid
from .reading import Reading, Scan
from .records import Record

VERSION = 1  # of what is on disk


class Cached:
    """Scans by number, each read once.

    Args: folder: where they are kept from run to run; None reads all of them now, into memory.
    """

    def __init__(self, records: Sequence[Record], reading: Reading, folder: Path | None) -> None:
        packed = _Packed(reading)
        self._packed: Any
        if folder is None:
            with _PlainErrors():
                self._packed = CacheDataset(records, packed, progress=False, copy_cache=False, num_workers=None)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._packed = PersistentDataset(records, packed, folder, hash_func=packed.fingerprint)

    def __getitem__(self, index: int) -> Scan:
        with _PlainErrors():
            packed: dict[str, Any] = dict(self._packed[index])
        for name in ("grid", "stored"):
            packed[name] = Grid(packed.pop(f"{name}_shape"), torch.as_tensor(packed.pop(f"{name}_matrix")))
        return Scan(**packed)


class _Packed(Transform):
    """A reading whose result is plain tensors and numbers, which MONAI may keep, save and load.

    A `Transform`, because MONAI caches the results of no other callable.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def __call__(self, record: Record) -> dict[str, Any]:
        scan = self._reading(record)
        packed: dict[str, Any] = {"name": scan.name, "image": scan.image, "label": scan.label, "points": scan.points}
        for name, grid in (("grid", scan.grid), ("stored", scan.stored)):
            packed |= {f"{name}_shape": list(grid.shape), f"{name}_matrix": grid.world_from_voxel}
        return packed

    def fingerprint(self, record: Record) -> bytes:
        """Of the files as they are now and of how they are read: a file that was changed is read again."""
        places = [place for place in (record.image, record.label, record.points) if place is not None]
        stats = [(str(p.path.resolve()), p.key, p.path.stat().st_size, p.path.stat().st_mtime_ns) for p in places]
        return (
            hashlib.sha256(pickle.dumps((VERSION, record.name, stats, repr(self._reading)))).hexdigest()[:32].encode()
        )


class _PlainErrors:
    """MONAI wraps what a reading says into "applying transform"; this gives the sentence itself."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, OSError | ValueError):
            raise error.__cause__ from None
