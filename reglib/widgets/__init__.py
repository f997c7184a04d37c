"""Controls that a reader moves, and the pictures that answer.

A view returns `(render, controls)`: `render(state) -> Figure` is pure, `controls` says what may be moved, so
that `workbook.explore(*view)` is a widget for a reader, a sweep in CI and a strip of pictures in print.
"""

from .controls import Choice, Click, Control, Number, Slider, Toggle
from .rulers import CODES_2D, NORMALIZED, axis_ruler, half_voxel, in_world, resize_ruler, storage_puzzle
from .views import (
    BLENDS,
    PUSHED,
    Image,
    State,
    View,
    blend,
    field_editor,
    pull_push,
    slice_viewer,
    voxel_finder,
    warp_amount,
)

__all__ = [
    "BLENDS",
    "CODES_2D",
    "NORMALIZED",
    "PUSHED",
    "Choice",
    "Click",
    "Control",
    "Image",
    "Number",
    "Slider",
    "State",
    "Toggle",
    "View",
    "axis_ruler",
    "blend",
    "field_editor",
    "half_voxel",
    "in_world",
    "pull_push",
    "resize_ruler",
    "slice_viewer",
    "storage_puzzle",
    "voxel_finder",
    "warp_amount",
]
