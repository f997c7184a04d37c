"""What a registration minimizes: weighted terms on images, fields and landmarks, and the gradient to its next step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import field, filters
from ..transforms import Diffeomorphism, SymmetricDiffeomorphism, Transform
from .levels import Scene

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Term:
    """One part of an objective:  weight * loss.

    Args:
        loss: a similarity is called as (warped, fixed), with `mask=` (b, 1, *s) where masks or the field of view cut;
            a regularizer as (field, spacing=mm) for each of `transform.deformations()`.
        name: its key in the history; default the name of the loss, numbered if it comes twice.
        fixed, moving: images of its own for a similarity, such as masks of organs, on the grids of the pair.
    """

    loss: Loss
    weight: float = 1.0
    name: str = ""
    fixed: Tensor | None = None
    moving: Tensor | None = None


@dataclass(frozen=True)
class Landmarks:
    """Points that belong together, as a term:  weight * mean |y(x_k) - m_k|^2  in mm^2.

    Args:
        fixed, moving: (k, d) or (b, k, d) world mm, in one order.
        loss: another one, called as (mapped, moving), both (b, k, d) mm.
    """

    fixed: Tensor
    moving: Tensor
    weight: float = 1.0
    loss: Loss | None = None


Terms = Loss | Term | Sequence[Loss | Term]


def as_terms(given: Terms | None) -> tuple[Term, ...]:
    """One loss, one term or several as named terms."""
    several = () if given is None else given if isinstance(given, Sequence) else (given,)
    terms: list[Term] = []
    for part in several:
        term = part if isinstance(part, Term) else Term(part)
        name = term.name or _name_of(term.loss)
        twins = sum(known.name.split(" ")[0] == name for known in terms)
        terms.append(Term(term.loss, term.weight, f"{name} {twins + 1}" if twins else name, term.fixed, term.moving))
    return tuple(terms)


def _name_of(loss: Any) -> str:
    while isinstance(loss, partial):
        loss = loss.func
    name = getattr(loss, "__name__", type(loss).__name__)
    return "loss" if name == "<lambda>" else str(name)


class Objective:
    """The sum of all terms on one level's images, as a function of the transform.

    Args:
        scene: images and masks at this level.
        similarities, regularizers: their terms; `weight` multiplies all regularizers.
        before: frozen maps that were applied to the images already; landmarks go through them too.
    """

    def __init__(
        self,
        scene: Scene,
        similarities: Sequence[Term],
        regularizers: Sequence[Term],
        weight: float,
        landmarks: Landmarks | None,
        before: Transform | None,
    ) -> None:
        self.scene, self.regularizers, self.weight = scene, regularizers, weight
        self.landmarks, self.before = landmarks, before
        masks_move = scene.crop or scene.moving_mask is not None
        self.similarities = [
            (term, images, term.loss if masks_move else _prepared(term.loss, images.fixed, scene.fixed_mask))
            for term, images in zip(similarities, scene.images, strict=True)
        ]

    def descend(self, transform: Transform) -> dict[str, float]:
        """The value of each term and their sum, `loss`; the gradient is left in the parameters.

        Of a diffeomorphism it is the gradient to the next step s in u <- compose(u, s), at s = 0.
        """
        if isinstance(transform, Diffeomorphism):
            return self._descend_composed(transform)
        if isinstance(transform, SymmetricDiffeomorphism):
            return self._descend_to_the_middle(transform)
        ddf = transform.ddf(self.scene.grid)
        warped = [self.scene.warp(images, ddf) for images in self.scene.images]
        alike, values = self._alike(warped, ddf)
        rest, more = self._rest(transform)
        loss = alike + rest
        loss.backward()
        for module in transform.modules():
            if isinstance(module, Diffeomorphism | SymmetricDiffeomorphism):
                for u in module.parameters():
                    u.grad = None if u.grad is None else pulled_back(u.grad, u.detach())
        return {"loss": float(loss.detach()), **values, **more}

    def _descend_composed(self, model: Diffeomorphism) -> dict[str, float]:
        """Without a derivative of the interpolation: for s inside the map, dW/ds is the slope of the warped image."""
        u = model.displacement
        ddf = u.detach()
        warped = [self.scene.warp(images, ddf).requires_grad_() for images in self.scene.images]
        alike, values = self._alike(warped, ddf)
        alike.backward()
        rest, more = self._rest(model)
        if rest.requires_grad:
            rest.backward()
        with torch.no_grad():
            step = torch.zeros_like(ddf) if u.grad is None else pulled_back(u.grad, ddf)
            for image in warped:
                if image.grad is not None:
                    _add_slopes(step, image.detach(), image.grad)
            u.grad = step
        return {"loss": float(alike.detach()) + float(rest.detach()), **values, **more}

    def _descend_to_the_middle(self, model: SymmetricDiffeomorphism) -> dict[str, float]:
        """The same for two fields, each with its own image: both come to the middle and are compared both ways round.

        Some losses weigh their two images differently; so no image is preferred.
        """
        halves = (model.to_moving, model.to_fixed)
        onwards, back = (u.detach() for u in halves)
        fixed_mask = self.scene.fixed_mask
        middle = replace(self.scene, fixed_mask=None if fixed_mask is None else field.warp(fixed_mask, back))
        mask, total, values = middle.mask(onwards), onwards.new_zeros(()), {}
        masked = {} if mask is None else {"mask": mask * field.valid_mask(back).to(mask.dtype)}
        seen: list[list[Tensor]] = []
        for term, images, _ in self.similarities:
            pair = self.scene.warp(images, onwards), self.scene.warp_fixed(images, back)
            seen.append([image.requires_grad_() for image in pair])
            both_ways = [term.loss(*images_of, **masked) for images_of in (seen[-1], seen[-1][::-1])]
            value = (both_ways[0] + both_ways[1]) / 2
            total = total + term.weight * value
            values[term.name] = float(value.detach())
        total.backward()
        rest, more = self._rest(model)
        if rest.requires_grad:
            rest.backward()
        with torch.no_grad():
            for u, images_of in zip(halves, zip(*seen, strict=True), strict=True):
                step = torch.zeros_like(u) if u.grad is None else pulled_back(u.grad, u.detach())
                for image in images_of:
                    if image.grad is not None:
                        _add_slopes(step, image.detach(), image.grad)
                u.grad = step
        named = values if len(values) > 1 else {}
        loss = float(total.detach()) + float(rest.detach())
        return {"loss": loss, "similarity": float(total.detach()), **named, **more}

    def _alike(self, warped: Sequence[Tensor], ddf: Tensor) -> tuple[Tensor, dict[str, float]]:
        mask = self.scene.mask(ddf.detach())
        masked = {} if mask is None else {"mask": mask}
        total, values = warped[0].new_zeros(()), {}
        for (term, images, loss), image in zip(self.similarities, warped, strict=True):
            value = loss(image, images.fixed, **masked)
            total = total + term.weight * value
            values[term.name] = float(value.detach())
        named = values if len(values) > 1 else {}
        return total, {"similarity": float(total.detach()), **named}

    def _rest(self, transform: Transform) -> tuple[Tensor, dict[str, float]]:
        """Regularizers and landmarks; `regularizer` is their sum before the common weight."""
        rough = self.scene.images[0].fixed.new_zeros(())
        values: dict[str, float] = {}
        for term in self.regularizers:
            parts = [term.loss(u, spacing=self.scene.grid.spacing) for u in transform.deformations()]
            if parts:
                value = torch.stack(parts).sum()
                rough = rough + term.weight * value
                values[term.name] = float(value.detach())
        named = values if len(values) > 1 else {}
        total, record = self.weight * rough, {"regularizer": float(rough.detach()), **named}
        if self.landmarks is not None:
            value = self._landmark_error(transform, self.landmarks)
            total = total + self.landmarks.weight * value
            record["landmarks"] = float(value.detach())
        return total, record

    def _landmark_error(self, transform: Transform, landmarks: Landmarks) -> Tensor:
        mapped = transform.points(landmarks.fixed)
        if self.before is not None:
            mapped = self.before.points(mapped)
        if landmarks.loss is not None:
            return landmarks.loss(mapped, landmarks.moving)
        return (mapped - landmarks.moving).square().sum(-1).mean()


def checked_landmarks(landmarks: Landmarks | None, like: Tensor) -> Landmarks | None:
    """Both point sets as (b, k, d) like the images, or one sentence."""
    if landmarks is None:
        return None
    fixed, moving, d = landmarks.fixed, landmarks.moving, like.ndim - 2
    if fixed.shape != moving.shape or fixed.ndim not in (2, 3) or fixed.shape[-1] != d or 0 in fixed.shape:
        raise ValueError(
            f"landmarks must be two sets of {d}-D world points (k, {d}) mm in one order; got {tuple(fixed.shape)} and "
            f"{tuple(moving.shape)}."
        )
    if not bool(fixed.isfinite().all() & moving.isfinite().all()):
        raise ValueError("landmarks must be finite; one holds NaN or infinity. Leave points without a partner out.")
    fixed, moving = (p.reshape(-1, *p.shape[-2:]).to(like) for p in (fixed, moving))
    return replace(landmarks, fixed=fixed, moving=moving)


def _prepared(loss: Loss, fixed: Tensor, mask: Tensor | None) -> Loss:
    """A similarity that needs something of the fixed image in every step gets it made once, by its `prepare`."""
    function: Any = loss
    given: dict[str, Any] = {}
    while isinstance(function, partial) and not function.args:
        given = {**function.keywords, **given}
        function = function.func
    prepare = getattr(function, "prepare", None)
    return loss if prepare is None else partial(loss, **prepare(fixed, mask=mask, **given))


def pulled_back(gradient: Tensor, ddf: Tensor) -> Tensor:
    """The gradient to a step s that is composed, u_new = compose(u, s), at s = 0:  (I + grad u)^T dL/du."""
    result = gradient.clone()
    for j in range(ddf.shape[1]):
        slope = filters.finite_difference(ddf, j + 2)
        for k in range(ddf.shape[1]):
            result[:, j].addcmul_(slope[:, k], gradient[:, k])
    return result


def _add_slopes(step: Tensor, image: Tensor, gradient: Tensor) -> None:
    """Add sum_c dL/dW_c grad W_c, in place."""
    for j in range(step.shape[1]):
        product = filters.finite_difference(image, j + 2).mul_(gradient)
        step[:, j].add_(product[:, 0] if product.shape[1] == 1 else product.sum(1))
