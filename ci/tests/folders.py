"""Small data sets on disk in each layout, for the tests of the room `data`."""

from pathlib import Path

import h5py
import numpy as np
import torch
from helpers import SHAPES, oblique, smooth_image

from reglib import io
from reglib.grid import Grid

GRID = Grid(SHAPES[3], oblique(3))


def image_of(number, grid=GRID):
    """An image in [0, 1] whose first voxel is its number / 100, so that a test knows who is who."""
    image = 0.5 + 0.1 * smooth_image(grid.shape, seed=number).clamp(-3, 3)
    image[..., 0], image[..., -1] = 0.0, 1.0  # so that scaling to [0, 1] leaves it as it is
    image[(0, 0, *[1] * grid.dim)] = number / 100
    return image


def label_of(number, grid=GRID, *, structures=2):
    """Boxes that do not touch, (1, k, *s); which box is which structure depends on the number."""
    label = torch.zeros(1, structures, *grid.shape, dtype=torch.int64)
    for k in range(structures):
        label[0, k, 1 + 3 * k : 3 + 3 * k, 2 : 4 + number % 3] = 1
    return label


def number_of(image):
    return round(100 * float(image[(0, *[1] * (image.ndim - 1))]))


def save_scan(folder, name, number, *, role="", grid=GRID, structures=2):
    """An image, and with `structures` a label, below folder/ROLEimages and folder/ROLElabels."""
    for what in ("images", "labels") if structures else ("images",):
        path = Path(folder) / f"{role}{what}" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        if what == "images":
            io.save_image(path, image_of(number, grid), grid)
        else:
            io.save_labels(path, label_of(number, grid, structures=structures), grid)


def unpaired(folder, count=5, *, first=1, **more):
    for k in range(first, first + count):
        save_scan(folder, f"case{k}", k, **more)
    return folder


def paired(folder, count=4, **more):
    """Moving scans have numbers from 1, their fixed ones from 51."""
    for k in range(count):
        save_scan(folder, f"case{k + 1}", k + 1, role="moving_", **more)
        save_scan(folder, f"case{k + 1}", k + 51, role="fixed_", **more)
    return folder


def grouped(folder, sizes=(3, 2, 4), **more):
    """Scan j of group i has the number 10 i + j."""
    for i, size in enumerate(sizes, start=1):
        for j in range(1, size + 1):
            save_scan(folder, f"group{i}/scan{j}", 10 * i + j, **more)
    return folder


def hdf5(path, arrays, matrix=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            data = file.create_dataset(key, data=np.asarray(array))
            if matrix is not None:
                data.attrs["world_from_voxel"] = matrix
    return path
