"""The losses on images, written again from their definitions in NumPy float64: images (b, c, *s), masks (b, 1, *s)."""

import itertools

import numpy as np
from scipy.interpolate import BSpline
from scipy.ndimage import convolve, generate_binary_structure, minimum_filter


def numpy_mse(w, f, m):
    return np.mean([(mi * (wi - fi) ** 2).sum() / mi.sum() / len(wi) for wi, fi, mi in zip(w, f, m, strict=True)])


def numpy_ncc(w, f, m):
    scores = []
    for wi, fi, mi in zip(w, f, m, strict=True):
        for a, b in zip(wi, fi, strict=True):
            covariance = np.cov(a.ravel(), b.ravel(), aweights=mi.ravel())
            scores.append(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))
    return 1 - np.mean(scores)


def numpy_lncc(w, f, m, window):
    """Every window in turn: only voxels that exist and have weight; windows weighted by the mask at their center."""
    scores = []
    for wi, fi, mi in zip(w, f, m, strict=True):
        weighted, total = 0.0, 0.0
        for index in itertools.product(*[range(n) for n in mi.shape[1:]]):
            cut = tuple(slice(max(i - window // 2, 0), i + window // 2 + 1) for i in index)
            share = mi[(0, *cut)]
            for a, b in zip(wi, fi, strict=True):
                a, b = a[cut], b[cut]
                correlation = 0.0
                if (share > 0).sum() > 1:
                    a, b = a - np.average(a, weights=share), b - np.average(b, weights=share)
                    power = np.average(a * a, weights=share) * np.average(b * b, weights=share)
                    correlation = np.average(a * b, weights=share) ** 2 / power if power > 1e-20 else 0.0
                weighted += mi[(0, *index)] * correlation
                total += mi[(0, *index)]
        scores.append(weighted / total)
    return 1 - np.mean(scores)


def numpy_lcc(w, f, m, window=7):
    """Both images under one mask: each with the mean of its own mask, products weighted by both."""
    scores = []
    for wi, fi, mi in zip(w, f, m, strict=True):
        ones = np.ones((window,) * mi[0].ndim)

        def local(x, weight, ones=ones):
            return convolve(weight * x, ones, mode="constant") / convolve(weight, ones, mode="constant").clip(1e-6)

        both = mi[0] ** 2
        for a, b in zip(wi, fi, strict=True):
            ma, mb = local(a, mi[0]), local(b, mi[0])
            powers = [local(x * x, both) - 2 * n * local(x, both) + n**2 for x, n in ((a, ma), (b, mb))]
            covariance = local(a * b, both) - ma * local(b, both) - mb * local(a, both) + ma * mb
            product = powers[0] * powers[1]
            cc = np.where(product > 1e-20, covariance**2 / np.maximum(product, 1e-20), 0)
            scores.append((both * cc).sum() / both.sum())
    return 1 - np.mean(scores)


def joint_histogram(x, y, m, bins, warped_range=None, fixed_range=None, parzen="bspline"):
    """(warped bins, fixed bins): a cubic window for the warped image and a linear one for the fixed, or gaussians."""
    cubic, linear = BSpline.basis_element(np.arange(-2.0, 3), False), BSpline.basis_element(np.arange(-1.0, 2), False)
    histograms = []
    for values, window, limits in ((x, cubic, warped_range), (y, linear, fixed_range)):
        low, high = limits or (values.min(), values.max())
        position = (values.ravel() - low) / (high - low) * (bins - 1)
        if parzen == "gaussian":
            spread = np.exp(-0.5 * ((position[:, None] - np.arange(bins)) / 0.5) ** 2)
            histograms.append(spread / spread.sum(1, keepdims=True))
        else:
            centers = np.arange(-1, bins + 1)  # a bin beyond each end takes what the window spills
            histograms.append(np.nan_to_num(window(position[:, None] - centers)))
    weight = np.broadcast_to(m, x.shape).ravel()
    joint = (histograms[0] * weight[:, None]).T @ histograms[1]
    return joint / joint.sum()


def entropy(p):
    p = p[p > 0]
    return -(p * np.log(p)).sum()


def numpy_mi(w, f, m, bins, **options):
    values = []
    for parts in zip(w, f, m, strict=True):
        joint = joint_histogram(*parts, bins, **options)
        independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        present = joint > 0
        values.append((joint[present] * np.log(joint[present] / independent[present])).sum())
    return -np.mean(values)


def numpy_nmi(w, f, m, bins, **options):
    joints = [joint_histogram(*parts, bins, **options) for parts in zip(w, f, m, strict=True)]
    return 2 - np.mean([(entropy(j.sum(0)) + entropy(j.sum(1))) / entropy(j) for j in joints])


def voxelwise(rho):
    """A loss that is the weighted mean of rho(w - f)."""
    return lambda w, f, m: np.mean(
        [(mi * rho(wi - fi)).sum() / mi.sum() / len(wi) for wi, fi, mi in zip(w, f, m, strict=True)]
    )


numpy_mae = voxelwise(np.abs)
numpy_huber = voxelwise(lambda e: np.where(np.abs(e) < 1, e**2 / 2, np.abs(e) - 0.5))
numpy_tukey = voxelwise(lambda e: np.where(np.abs(e) < 0.5, 0.25 / 6 * (1 - (1 - (e / 0.5) ** 2) ** 3), 0.25 / 6))


def numpy_ngf(w, f, m):
    """A voxel counts by the smallest weight that its differences touch."""
    scores = []
    for wi, fi, mi in zip(w, f, m, strict=True):
        cross = generate_binary_structure(mi[0].ndim, 1)
        weight = minimum_filter(mi[0], footprint=cross, mode="nearest")
        parts = []
        for a, b in zip(wi, fi, strict=True):
            slopes = [np.stack(np.gradient(x)) for x in (a, b)]
            powers = [(s**2).sum(0) for s in slopes]
            noise = [np.average(np.sqrt(p), weights=weight) ** 2 for p in powers]
            inner = (slopes[0] * slopes[1]).sum(0) ** 2
            parts.append((weight * inner / ((powers[0] + noise[0]) * (powers[1] + noise[1]))).sum() / weight.sum())
        scores.append(np.mean(parts))
    return 1 - np.mean(scores)


def numpy_mind(w, f, m, radius=1, dilation=2):
    scores = []
    for wi, fi, mi in zip(w, f, m, strict=True):
        features = [[mind_ssc(channel, mi[0], radius, dilation) for channel in x] for x in (wi, fi)]
        gap = (np.array(features[0]) - np.array(features[1])) ** 2
        scores.append((gap * mi[0]).sum() / mi.sum() / (gap.shape[0] * gap.shape[1]))
    return np.mean(scores)


def mind_ssc(image, m, radius, dilation):
    """Self-similarity context of one image: patches around two neighbors along different axes, compared."""
    d = image.ndim

    def shifted(x, axis, step):
        return np.take(x, np.clip(np.arange(x.shape[axis]) + step, 0, x.shape[axis] - 1), axis)

    def patch(x):
        return convolve(x, np.ones((2 * radius + 1,) * d), mode="constant")

    around = [(axis, step) for axis in range(d) for step in (dilation, -dilation)]
    distances = []
    for a, b in itertools.combinations(around, 2):
        if a[0] != b[0]:
            both = shifted(m, *a) * shifted(m, *b)
            gap = both * (shifted(image, *a) - shifted(image, *b)) ** 2
            distances.append(patch(gap) / np.maximum(patch(both), 1e-6))
    apart = np.array(distances) - np.min(distances, axis=0)
    noise = apart.mean(0)
    return np.exp(-apart / np.clip(noise, 1e-3 * noise.mean(), 1e3 * noise.mean()))


def numpy_ssim(w, f, m, size=11, sigma=1.5):
    scores = []
    for wi, fi, mi in zip(w, f, m, strict=True):
        inside = fi[:, mi[0] > 0]
        c1, c2 = (k * (inside.max() - inside.min()) for k in (0.01, 0.03))
        line = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
        kernel = line
        for _ in range(mi[0].ndim - 1):
            kernel = np.multiply.outer(kernel, line)
        count = convolve(mi[0], kernel, mode="constant")
        for a, b in zip(wi, fi, strict=True):

            def mean(x, mi=mi, kernel=kernel, count=count):
                return convolve(mi[0] * x, kernel, mode="constant") / count

            ma, mb = mean(a), mean(b)
            va, vb, cab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
            value = (2 * ma * mb + c1**2) * (2 * cab + c2**2) / ((ma**2 + mb**2 + c1**2) * (va + vb + c2**2))
            scores.append((mi[0] * value).sum() / mi.sum())
    return 1 - np.mean(scores)


def numpy_loss(name, warped, fixed, mask=None):
    """The named loss with the library's defaults."""
    w, f = warped.double().numpy(), fixed.double().numpy()
    m = np.ones((len(f), 1, *f.shape[2:])) if mask is None else mask.double().numpy()
    m = np.broadcast_to(m, (len(f), *m.shape[1:]))
    formula = {
        "mse": numpy_mse,
        "mae": numpy_mae,
        "huber": numpy_huber,
        "tukey": numpy_tukey,
        "ncc": numpy_ncc,
        "lncc": lambda *a: numpy_lncc(*a, window=9),
        "lcc": numpy_lcc,
        "mi": lambda *a: numpy_mi(*a, bins=32),
        "nmi": lambda *a: numpy_nmi(*a, bins=32),
        "ngf": numpy_ngf,
        "mind": numpy_mind,
        "ssim": numpy_ssim,
    }
    return formula[name](w, f, m)
