"""SuperRetina: one look at a fundus photograph gives where its keypoints are, and a description of every place."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from .. import io

STRIDE = 8  # pixels between the features that are described
SAME = 1e-4  # by which ONNX may differ from PyTorch


class Seen(NamedTuple):
    """The probability of a keypoint (b, 1, h, w), and descriptors (b, d, h / 8 - 2, w / 8 - 2)."""

    probability: Float[Tensor, "b 1 h w"]
    descriptors: Float[Tensor, "b d i j"]


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
    )


class SuperRetina(nn.Module):
    """An encoder that a detector and a descriptor share.

    Args:
        widths: channels of the encoder's four stages.
        describes: channels of a descriptor.

    Call it with images (b, 1, h, w) from `preprocess`, sides multiples of 8 of at least 32. The names of its parameters
    are those of the published checkpoints.

    Source: Liu et al. 2022, doi:10.1007/978-3-031-19803-8_35; He et al. 2015, doi:10.1109/ICCV.2015.123.
    Differs: it begins with weights that keep the spread of what they pass on.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (64, 64, 128, 128), describes: int = 256) -> None:
        super().__init__()
        one, two, three, four = widths
        self.conv1a, self.conv1b = nn.Conv2d(1, one, 3, padding=1), nn.Conv2d(one, one, 3, padding=1)
        self.conv2a, self.conv2b = nn.Conv2d(one, two, 3, padding=1), nn.Conv2d(two, two, 3, padding=1)
        self.conv3a, self.conv3b = nn.Conv2d(two, three, 3, padding=1), nn.Conv2d(three, three, 3, padding=1)
        self.conv4a, self.conv4b = nn.Conv2d(three, four, 3, padding=1), nn.Conv2d(four, four, 3, padding=1)
        self.convDa = nn.Conv2d(four, describes, 3, padding=1)
        self.convDb = nn.Conv2d(describes, describes, 4, stride=2)
        self.convDc = nn.Conv2d(describes, describes, 1)
        self.trans_conv = nn.ConvTranspose2d(describes, describes, 2, stride=2)
        self.dconv_up3 = _pair(three + four, three)
        self.dconv_up2 = _pair(two + three, two)
        self.dconv_up1 = _pair(one + two, one)
        self.conv_last = nn.Conv2d(one, 1, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, images: Float[Tensor, "b 1 h w"]) -> Seen:
        """Raises: ValueError for sides that are no multiples of 8, or below 32."""
        if images.ndim != 4 or images.shape[1] != 1 or any(n % STRIDE or n < 32 for n in images.shape[2:]):
            raise ValueError(
                "images must be (b, 1, h, w) with sides that are multiples of 8, at least 32; got "
                f"{tuple(images.shape)}; preprocess(photo, size=768) makes such."
            )
        skips, x = [], images
        for stage in (1, 2, 3, 4):
            x = self.conv(f"{stage}b", self.conv(f"{stage}a", x))
            if stage < 4:
                skips.append(x)
                x = functional.max_pool2d(x, 2)
        described = self.convDc(self.conv("Db", self.conv("Da", x)))
        described = self.trans_conv(described / described.norm(dim=1, keepdim=True).clamp(min=1e-12))
        for up, skip in zip((self.dconv_up3, self.dconv_up2, self.dconv_up1), reversed(skips), strict=True):
            larger = functional.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=True)
            x = up(torch.cat([larger, skip], dim=1))
        return Seen(torch.sigmoid(self.conv_last(x)), described)

    def conv(self, name: str, x: Tensor) -> Tensor:
        return functional.relu(getattr(self, f"conv{name}")(x))


def load_superretina(path: str | os.PathLike[str]) -> SuperRetina:
    """A network with the weights of a checkpoint: a published one or one that `train_keypoints` wrote.

    Raises: ValueError if the file is no such checkpoint, or holds more than numbers.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} must be a checkpoint of SuperRetina, with numbers alone; reading it failed: {error}"
        ) from None
    weights = stored.get("net", stored) if isinstance(stored, dict) else stored
    names = set(SuperRetina().state_dict())
    if not isinstance(weights, dict) or not names <= set(weights):
        missing = sorted(names - set(weights if isinstance(weights, dict) else ()))
        raise ValueError(f"{path} is no checkpoint of SuperRetina; it lacks {', '.join(missing[:3])}, ....")
    widths = tuple(len(weights[f"conv{stage}b.bias"]) for stage in (1, 2, 3, 4))
    network = SuperRetina((widths[0], widths[1], widths[2], widths[3]), len(weights["convDc.bias"]))
    network.load_state_dict({name: weights[name] for name in names})
    return network.eval()


def export_onnx(network: SuperRetina, path: str | os.PathLike[str], *, size: tuple[int, int] = (768, 768)) -> float:
    """Write the network as ONNX: `images` (2, 1, *size), query and reference, to `probability` and `descriptors`.

    What is written is run once beside PyTorch.

    Returns: by how much both differ at most.

    Raises: ValueError if the packages are missing, or the written file says something else.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx asks for it when it is too late for a sentence
    except ImportError:
        raise ValueError("ONNX is not installed; pip install 'reglib[onnx]'.") from None
    network = network.eval()
    images = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["probability", "descriptors"]}
    with io.write_atomically(path) as temporary, torch.no_grad(), _quiet():
        expected = network(images)
        torch.onnx.export(network, (images,), temporary, **names, dynamo=True, external_data=False, verbose=False)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        found = [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]
        apart = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        if not apart <= SAME:
            raise ValueError(
                f"ONNX says something else than PyTorch, by up to {apart:g}; another version may do better."
            )
    return apart


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of packages that are not needed here, and of its own future."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))
        try:
            yield
        finally:
            logger.setLevel(before)
