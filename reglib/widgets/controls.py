"""The controls themselves: what may be moved, between which ends, and where a sweep stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Number = int | float


def _distinct(states: tuple[Any, ...]) -> list[Any]:
    return list(dict.fromkeys(states))


def _require_between(low: Number, value: Number, high: Number, control: str) -> None:
    if not low <= value <= high:
        raise ValueError(f"{control} must have low <= value <= high; got {low}, {value}, {high}.")


@dataclass(frozen=True)
class Slider:
    """A number between two others; whole numbers if low, high and value are.

    Args:
        low, high: the ends.
        value: where it starts.
        step: default 1 for whole numbers, else a hundredth of the range.
        unit: shown beside the name, for example "mm".
    """

    low: Number
    high: Number
    value: Number
    step: Number | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        _require_between(self.low, self.value, self.high, "Slider")

    def states(self) -> list[Any]:
        """What a sweep visits: low, value, high."""
        return _distinct((self.low, self.value, self.high))


@dataclass(frozen=True)
class Choice:
    """One of a few options."""

    options: tuple[Any, ...]
    value: Any

    def __post_init__(self) -> None:
        if self.value not in self.options:
            raise ValueError(f"Choice must start at one of its options {self.options}; got {self.value!r}.")

    def states(self) -> list[Any]:
        """What a sweep visits: every option."""
        return list(self.options)


@dataclass(frozen=True)
class Toggle:
    """On or off."""

    value: bool = False

    def states(self) -> list[Any]:
        """What a sweep visits: off and on."""
        return [False, True]


@dataclass(frozen=True)
class Click:
    """A point on the picture, (x, y) in data coordinates of the figure's first axes.

    Args:
        low, high: corners of the box that clicks are kept in.
        value: where it starts.
    """

    low: tuple[Number, Number]
    high: tuple[Number, Number]
    value: tuple[Number, Number]

    def __post_init__(self) -> None:
        for low, value, high in zip(self.low, self.value, self.high, strict=True):
            _require_between(low, value, high, "Click")

    def states(self) -> list[Any]:
        """What a sweep visits: both corners and the start."""
        return _distinct((self.low, self.value, self.high))


Control = Slider | Choice | Toggle | Click
