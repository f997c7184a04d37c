"""Folders of scans to batches of pairs; the last room where what is known of a scan rides with its tensors.

    found = data.find("prostate/train")                       # records: which files belong together
    pairs = data.PairedDataset(found, onto_fixed=True)        # who meets whom, as tensors
    for batch in data.loader(pairs, batch_size=4): ...        # batch["moving"], batch["fixed"], batch["fixed_label"]

`records` finds, `tables` lists, `reading` reads, `sampling` draws, `datasets` put it together, `caching` remembers,
`augmentation` bends, `inspection` says what is wrong.
"""

from .augmentation import Augmentation, true_ddf_after
from .datasets import (
    EpochSampler,
    GroupedDataset,
    PairDataset,
    PairedDataset,
    ScanToAtlasDataset,
    ScanToScanDataset,
    UnpairedDataset,
    collate,
    loader,
)
from .inspection import Inspection, inspect
from .reading import Reading, Scan, onto
from .records import Found, Place, Record, find, kind_of, split_by_subject, splits
from .tables import from_list, from_table, paired

__all__ = [
    "Augmentation",
    "EpochSampler",
    "Found",
    "GroupedDataset",
    "Inspection",
    "PairDataset",
    "PairedDataset",
    "Place",
    "Reading",
    "Record",
    "Scan",
    "ScanToAtlasDataset",
    "ScanToScanDataset",
    "UnpairedDataset",
    "collate",
    "find",
    "from_list",
    "from_table",
    "inspect",
    "kind_of",
    "loader",
    "onto",
    "paired",
    "split_by_subject",
    "splits",
    "true_ddf_after",
]
