"""Training of a network on batches of pairs, and what it is worth.

    network = networks.voxelmorph()
    def objective(batch, prediction):
        warped = train.warped(batch, prediction)
        return {"lncc": lncc_loss(warped, batch["fixed"]), "smooth": 0.5 * diffusion_loss(prediction.ddf)}
    history = train.fit(network, data.loader(pairs), objective, epochs=100, out="runs/first", valid=data.loader(others))

The objective is the reader's; `fit` knows no loss by name. `batches` asks the network and warps what a batch holds,
`fitting` is the loop, `history` what it noted, `checkpoints` what it can go on from, `predicting` what it says of a
whole data set, `memory` what it will take.
"""

from .batches import Batch, ask, scores, warped
from .checkpoints import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from .fitting import evaluate, fit, overfit_one_pair
from .history import History
from .memory import Memory, estimate_memory
from .predicting import predict

__all__ = [
    "Batch",
    "Checkpoint",
    "History",
    "Memory",
    "ask",
    "estimate_memory",
    "evaluate",
    "fit",
    "latest_checkpoint",
    "load_checkpoint",
    "overfit_one_pair",
    "predict",
    "save_checkpoint",
    "scores",
    "warped",
]
