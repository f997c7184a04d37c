"""What every registration network returns."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Float64
from torch import Tensor

from .. import field


class Prediction(NamedTuple):
    """What a network says of a batch of pairs; what it does not predict is None.

    Attributes:
        ddf: (b, d, *s) voxels of the fixed grid, fixed to moving.
        velocity: (b, d, *r) voxels of its own grid, which spans the fixed one and may be coarser; its flow is the ddf.
        affine: (b, d + 1, d + 1) world matrices moving_from_fixed, mm; without grids, voxels of 1 mm.
        label: (b, k, *s) in [0, 1], the moving label as it would lie on the fixed image, of a network without a field.
    """

    ddf: Float[Tensor, "b d *s"] | None = None
    velocity: Float[Tensor, "b d *r"] | None = None
    affine: Float64[Tensor, "b m m"] | None = None
    label: Float[Tensor, "b k *s"] | None = None

    def inverse_ddf(self) -> Float[Tensor, "b d *s"]:
        """The map the other way, moving to fixed, with its gradient: the flow of the negative velocity.

        Raises: ValueError for a network that predicts no velocity.
        """
        if self.velocity is None or self.ddf is None:
            raise ValueError('only a velocity has a flow both ways; make the network with output="velocity".')
        return field.resize_ddf(field.exponential(-self.velocity), self.ddf.shape[2:])
