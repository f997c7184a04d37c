"""How far to go along a gradient. Each takes the groups of `Transform.parameter_groups` and answers as torch's do.

torch's own optimizers fit too, as `Options(optimizer=torch.optim.Adam)`; their class is not the base of these, because
importing it takes more than a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import field

Closure = Callable[[], Any]


class Stepper:
    """Base: moves each parameter by its group's `lr` along a direction, added or composed.

    A group with `compose` holds ddfs, which are composed with their step; no voxel of it moves by more than `FARTHEST`.
    """

    FARTHEST = 0.5  # voxels
    smooths = True  # whether gradients of dense fields are to be smoothed
    betas = (0.9, 0.99)

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.param_groups = [{"betas": self.betas, "compose": False, **group} for group in groups]
        self._state: dict[Tensor, dict[str, Any]] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self, closure: Closure) -> None:
        """Call `closure`, which leaves the gradients, and take one step down."""
        closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        state = self._state.setdefault(parameter, {"count": 0})
                        state["count"] += 1
                        self._move(parameter, self._change(parameter.grad, state, group), group)

    def _change(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def _move(self, parameter: Tensor, change: Tensor, group: dict[str, Any]) -> None:
        if group["compose"]:
            far = change.square().sum(1, keepdim=True).div_(self.FARTHEST**2).add_(1).sqrt_()
            parameter.copy_(field.compose(parameter, change.div_(far)))
        else:
            parameter.add_(change)


class ScaledAdam(Stepper):
    """Adam with one second moment for each field instead of one for each entry.

    A step keeps the shape of the smoothed gradient: Adam's own would move a voxel of empty background as far as an
    edge, which fills a field with noise. `lr` of a group is the root mean square of a steady step.

    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; a scalar scale as in Jena et al. 2024, arXiv:2404.01249.
    Differs: the scale is the gradient's root mean square over voxels, not its largest value.
    """

    def _change(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        first, second = group["betas"]
        if "momentum" not in state:
            state.update(momentum=torch.zeros_like(gradient), power=0.0)
        state["momentum"].lerp_(gradient, 1 - first)
        state["power"] = second * state["power"] + (1 - second) * _power(gradient)
        scale = (state["power"] / (1 - second ** state["count"])).sqrt() * (1 - first ** state["count"])
        change: Tensor = state["momentum"] * (-group["lr"] / scale.clamp(min=1e-30))
        return change


class Momentum(Stepper):
    """Gradient descent with momentum; the first step of a level moves by `lr`, later ones as the gradient shrinks.

    Source: Polyak 1964, doi:10.1016/0041-5553(64)90137-5.   Differs: one scale a level, so that `lr` is in voxels.
    """

    def _change(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        first, _ = group["betas"]
        if "velocity" not in state:
            state.update(velocity=torch.zeros_like(gradient), scale=_power(gradient).sqrt().clamp(min=1e-30))
        state["velocity"].mul_(first).add_(gradient / state["scale"], alpha=1 - first)
        change: Tensor = -group["lr"] * state["velocity"]
        return change


def _power(gradient: Tensor) -> Tensor:
    """Mean square length of a gradient: of each field of a batch (b, 1, ..), or of all numbers of a linear map."""
    if gradient.ndim < 4:
        return gradient.square().mean() * (gradient.shape[1] if gradient.ndim > 1 else 1)
    return gradient.square().mean(tuple(range(1, gradient.ndim)), keepdim=True) * gradient.shape[1]


class Lbfgs:
    """L-BFGS with a line search (Wolfe), for few parameters and smooth losses; it finds its own step lengths.

    Parameters are measured in steps of their group's `lr`, so that mm and radians count alike. Gradients are taken as
    they are, not smoothed, and a level that cannot go further down keeps its state.

    Args: evaluations: of the objective, at most, in each step.   memory: steps that shape the next one.
    Raises: ValueError for a `Diffeomorphism`, whose steps are composed, not added.
    Source: Liu and Nocedal 1989, doi:10.1007/BF01589116; torch's implementation.
    """

    smooths = False

    def __init__(self, groups: list[dict[str, Any]], *, evaluations: int = 8, memory: int = 10) -> None:
        if any(group.get("compose") for group in groups):
            raise ValueError(
                "Lbfgs adds its steps, and a Diffeomorphism composes them; fit a StationaryVelocity instead."
            )
        self.param_groups = groups
        self._scaled = [
            (p, group["lr"], (p.detach() / group["lr"]).clone()) for group in groups for p in group["params"]
        ]
        self._optimizer = torch.optim.LBFGS(
            [leaf for _, _, leaf in self._scaled],
            max_iter=1,
            max_eval=evaluations,
            history_size=memory,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter, _, _ in self._scaled:
            parameter.grad = None

    def step(self, closure: Closure) -> None:
        """Search along one direction, calling `closure`, which returns the loss, several times."""

        def scaled() -> Any:
            self._write()
            loss = closure()
            for parameter, lr, leaf in self._scaled:
                leaf.grad = torch.zeros_like(leaf) if parameter.grad is None else parameter.grad * lr
            return loss

        self._optimizer.step(scaled)
        self._write()

    @torch.no_grad()
    def _write(self) -> None:
        for parameter, lr, leaf in self._scaled:
            parameter.copy_(leaf * lr)
