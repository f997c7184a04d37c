"""Two photographs of one eye: keypoints, matches, the homography between them, and how the field scores it.

    query, reference = load_photo("query.jpg"), load_photo("refer.jpg")
    found = align(query, reference)          # found.accepted, found.homography: query (x, y) -> reference (x, y)

`photos` reads and prepares, `network` looks, `points` finds, describes and matches, `homography` fits, `alignment` puts
it together, `scores` judges, `learning` teaches the network.
"""

from .alignment import Alignment, align
from .homography import Quadratic, apply_homography, estimate_homography, estimate_quadratic
from .learning import Lesson, Plan, Views, cut_lessons, load_lessons, train_keypoints
from .network import Seen, SuperRetina, export_onnx, load_superretina
from .photos import Photo, checkered, field_of_view, full_from_working, load_photo, preprocess, warp_photo
from .points import Extractor, Keypoints, describe, detect, learned, match, sift
from .scores import (
    FireScores,
    PairScore,
    Verification,
    fire_pairs,
    fire_scores,
    score_pair,
    summarized,
    varia_eer,
    varia_pairs,
)

__all__ = [
    "Alignment",
    "Extractor",
    "FireScores",
    "Keypoints",
    "Lesson",
    "PairScore",
    "Photo",
    "Plan",
    "Quadratic",
    "Seen",
    "SuperRetina",
    "Verification",
    "Views",
    "align",
    "apply_homography",
    "checkered",
    "cut_lessons",
    "describe",
    "detect",
    "estimate_homography",
    "estimate_quadratic",
    "export_onnx",
    "field_of_view",
    "fire_pairs",
    "fire_scores",
    "full_from_working",
    "learned",
    "load_lessons",
    "load_photo",
    "load_superretina",
    "match",
    "preprocess",
    "score_pair",
    "sift",
    "summarized",
    "train_keypoints",
    "varia_eer",
    "varia_pairs",
    "warp_photo",
]
