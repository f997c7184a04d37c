"""Grids, images, fields and error checks that the foundation's tests share; NumPy and SciPy, not reglib."""

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

SHAPES = {2: (16, 13), 3: (9, 12, 7)}
SPACINGS = {2: (0.8, 2.5), 3: (0.8, 1.0, 2.5)}
ORIGINS = {2: (-31.0, 12.5), 3: (-31.0, 12.5, 40.0)}
LPS = {2: np.diag([-1.0, -1.0]), 3: np.diag([-1.0, -1.0, 1.0])}
SHAPE_CASES = [SHAPES[2], SHAPES[3]]


def rotation(angles_deg):
    """(d, d) rotation by one angle in 2-D or a rotation vector of three in 3-D."""
    angles = np.deg2rad(np.atleast_1d(angles_deg).astype(float))
    if len(angles) == 1:
        c, s = np.cos(angles[0]), np.sin(angles[0])
        return np.array([[c, -s], [s, c]])
    return Rotation.from_rotvec(angles).as_matrix()


def affine(linear, shift):
    """Homogeneous float64 matrix of a linear part and a shift."""
    d = len(shift)
    matrix = np.eye(d + 1)
    matrix[:d, :d] = linear
    matrix[:d, d] = shift
    return matrix


def oblique(dim, *, angles=None, spacing=None, origin=None, flips=None):
    """World matrix of an oblique, anisotropic grid, NumPy float64."""
    angles = angles if angles is not None else {2: (23.0,), 3: (12.0, -20.0, 31.0)}[dim]
    flips = flips if flips is not None else {2: (1, -1), 3: (1, -1, 1)}[dim]
    spacing = SPACINGS[dim] if spacing is None else spacing
    linear = rotation(angles) @ np.diag(np.multiply(spacing, flips))
    return affine(linear, ORIGINS[dim] if origin is None else origin)


def apply(matrix, points):
    """Homogeneous matrix on points (..., d), NumPy float64."""
    matrix, points = np.asarray(matrix, float), np.asarray(points, float)
    return points @ matrix[:-1, :-1].T + matrix[:-1, -1]


def voxels(shape):
    """(*s, d) float64 indices of every voxel."""
    return np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij"), axis=-1)


def smooth_image(shape, *, seed=0, sigma=1.5, batch=1, channels=1, dtype=torch.float32):
    """(b, c, *s) band-limited noise with mean 0 and variance 1."""
    noise = np.random.default_rng(seed).standard_normal((batch, channels, *shape))
    image = gaussian_filter(noise, sigma=(0, 0, *[sigma] * len(shape)), mode="nearest")
    axes = tuple(range(2, image.ndim))
    image = (image - image.mean(axes, keepdims=True)) / image.std(axes, keepdims=True)
    return torch.from_numpy(image).to(dtype)


def smooth_ddf(shape, *, largest, seed=0, sigma=3.0, batch=1, dtype=torch.float32):
    """(b, d, *s) smooth field whose largest component is `largest` voxels."""
    ddf = smooth_image(shape, seed=seed, sigma=sigma, batch=batch, channels=len(shape), dtype=torch.float64)
    return (ddf * (largest / ddf.abs().max())).to(dtype)


def blob(shape, center, sigma):
    """(1, 1, *s) float32 gaussian of height 1."""
    distance = ((voxels(shape) - np.asarray(center, float)) ** 2).sum(-1)
    return torch.from_numpy(np.exp(-distance / (2 * sigma**2))).float()[None, None]


def center_of_mass(image):
    """(d,) float64 voxels, of an image (1, 1, *s)."""
    mass = image[0, 0].double().numpy()
    return (mass[..., None] * voxels(mass.shape)).reshape(-1, mass.ndim).sum(0) / mass.sum()


def targets(ddf):
    """(b, d, *s) positions p + ddf[p], NumPy float64."""
    values = ddf.detach().double().numpy()
    return values + np.moveaxis(voxels(values.shape[2:]), -1, 0)


def inner(image, margin):
    """The image without `margin` voxels at each end of its spatial axes."""
    cut = slice(margin, -margin) if margin else slice(None)
    return image[(slice(None), slice(None), *[cut] * (image.ndim - 2))]


def largest(a, b=0.0):
    """Largest absolute difference, a float."""
    a = a.detach() if isinstance(a, torch.Tensor) else torch.as_tensor(a)
    b = b.detach() if isinstance(b, torch.Tensor) else torch.as_tensor(b)
    return float((a.double() - b.double()).abs().max())


def to_sitk(array, matrix, *, vector=False):
    """SimpleITK image of an array (*s) or (*s, d) on a RAS world matrix, written without reglib."""
    d = len(matrix) - 1
    order = (*reversed(range(d)), d) if vector else tuple(reversed(range(d)))
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.transpose(array, order)), isVector=vector)
    linear, shift = LPS[d] @ matrix[:d, :d], LPS[d] @ matrix[:d, d]
    spacing = np.linalg.norm(linear, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((linear / spacing).ravel().tolist())
    image.SetOrigin(shift.tolist())
    return image


def sitk_warp(moving, moving_matrix, ddf, fixed_matrix, interpolator):
    """A moving array warped by a ddf (d, *s) in fixed voxels, by SimpleITK's displacement field transform."""
    d = len(fixed_matrix) - 1
    world = np.moveaxis(ddf, 0, -1) @ (LPS[d] @ fixed_matrix[:d, :d]).T
    transform = sitk.DisplacementFieldTransform(to_sitk(world, fixed_matrix, vector=True))
    fixed = to_sitk(np.zeros(ddf.shape[1:]), fixed_matrix)
    warped = sitk.Resample(to_sitk(moving, moving_matrix), fixed, transform, interpolator, 0.0)
    return np.transpose(sitk.GetArrayFromImage(warped), tuple(reversed(range(d))))


def quiet(function, *args, **kwargs):
    """Call a reference library whose warnings are not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


@contextmanager
def sentence(error, *words):
    """The block must raise exactly this error, on one line, naming each of these words."""
    with pytest.raises(error) as caught:
        yield
    text = str(caught.value)
    assert caught.type is error, f"{caught.type.__name__}: {text}"
    assert text
    assert "\n" not in text
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"
