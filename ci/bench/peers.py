"""The established registration tools, each as its own documentation uses it, in a process of its own.

python ci/bench/peers.py probe NAME                the package's version, or why it does not import
python ci/bench/peers.py run NAME INPUTS OUT       registers, and writes OUT/field.npy and OUT/outcome.json
python ci/bench/peers.py watch OUT SECONDS CMD...  runs any command; writes its seconds and peak memory

`registration.py` calls these; nothing is imported here before it is needed, so that a process holds one tool only.
A field is (X, Y, Z, 3), what to add to each voxel of the fixed image to find its place in the moving one, in LPS or
RAS millimeters or in voxels; affine stages are included.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

FIXED, MOVING = "fixed.nii.gz", "moving.nii.gz"
MOVING_ON_FIXED = "moving_on_fixed.nii.gz"  # through the headers, for tools that want one grid


class Clock:
    """Adds up the seconds spent inside `with clock:`."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._started


Found = tuple[str, Any]  # the unit, and an array (X, Y, Z, 3)


@dataclass(frozen=True)
class Peer:
    """A tool: what it is called, installed and imported as, the settings its documentation gives, and how it runs."""

    title: str
    distribution: str
    modules: tuple[str, ...]
    settings: str
    run: Callable[[Path, Path, Clock], Found]


# -- ANTs --------------------------------------------------------------------------------------------------------
def ants_syn(inputs: Path, out: Path, clock: Clock) -> Found:
    ants = import_module("ants")
    fixed, moving = (ants.image_read(str(inputs / name)) for name in (FIXED, MOVING))
    with clock:
        found = ants.registration(fixed, moving, type_of_transform="SyN")
    total = ants.apply_transforms(fixed, moving, transformlist=found["fwdtransforms"], compose=str(out / "total_"))
    return "lps_mm", ants.image_read(total).numpy()


# -- SimpleITK ---------------------------------------------------------------------------------------------------
def sitk_demons(inputs: Path, out: Path, clock: Clock) -> Found:
    sitk, fixed, moving = _sitk_images(inputs)
    with clock:
        affine = _sitk_affine(sitk, fixed, moving)
        matcher = sitk.HistogramMatchingImageFilter()
        matcher.SetNumberOfHistogramLevels(1024)
        matcher.SetNumberOfMatchPoints(7)
        matcher.ThresholdAtMeanIntensityOn()
        moved = matcher.Execute(sitk.Resample(moving, fixed, affine, sitk.sitkLinear), fixed)
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(20)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(2.0)
        displacement = None
        for factor, sigma in ((4, 8.0), (2, 4.0), (1, 0.0)):
            pair = [_sitk_coarse(sitk, image, factor, sigma) for image in (fixed, moved)]
            if displacement is None:
                displacement = sitk.Image(pair[0].GetSize(), sitk.sitkVectorFloat64)
                displacement.CopyInformation(pair[0])
            displacement = demons.Execute(*pair, sitk.Resample(displacement, pair[0]))
    return _sitk_field(sitk, fixed, [affine, sitk.DisplacementFieldTransform(displacement)])


def sitk_bspline(inputs: Path, out: Path, clock: Clock) -> Found:
    sitk, fixed, moving = _sitk_images(inputs)
    with clock:
        affine = _sitk_affine(sitk, fixed, moving)
        spline = sitk.BSplineTransformInitializer(fixed, [2] * fixed.GetDimension())
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsJointHistogramMutualInformation()
        method.SetOptimizerAsGradientDescentLineSearch(5.0, 100, convergenceMinimumValue=1e-4, convergenceWindowSize=5)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetMovingInitialTransform(affine)
        method.SetInitialTransformAsBSpline(spline, inPlace=True, scaleFactors=[1, 2, 5])
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([4, 2, 1])
        method.Execute(fixed, moving)
    return _sitk_field(sitk, fixed, [affine, spline])


def _sitk_images(inputs: Path) -> tuple[Any, Any, Any]:
    sitk = import_module("SimpleITK")
    fixed, moving = (sitk.ReadImage(str(inputs / name), sitk.sitkFloat32) for name in (FIXED, MOVING))
    return sitk, fixed, moving


def _sitk_affine(sitk: Any, fixed: Any, moving: Any) -> Any:
    """The linear stage of SimpleITK-Notebooks 60, but affine where it is rigid, and on every voxel, as by default.

    The notebook reads one voxel in a hundred at random: of the small pairs too few are left.
    """
    kind = sitk.CenteredTransformInitializerFilter.GEOMETRY
    start = sitk.CenteredTransformInitializer(fixed, moving, sitk.AffineTransform(fixed.GetDimension()), kind)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=50)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescent(1.0, 100, convergenceMinimumValue=1e-6, convergenceWindowSize=10)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=True)
    return method.Execute(fixed, moving)


def _sitk_coarse(sitk: Any, image: Any, factor: int, sigma: float) -> Any:
    return image if factor == 1 else sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, sigma), [factor] * 3)


def _sitk_field(sitk: Any, fixed: Any, transforms: list[Any]) -> Found:
    """The map of several transforms, of which ITK applies the last to a fixed point first."""
    total = sitk.CompositeTransform([sitk.Transform(each) for each in transforms])
    geometry = fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()
    image = sitk.TransformToDisplacementField(total, sitk.sitkVectorFloat64, *geometry)
    return "lps_mm", sitk.GetArrayFromImage(image).transpose(2, 1, 0, 3)


# -- elastix -----------------------------------------------------------------------------------------------------
def elastix_bspline(inputs: Path, out: Path, clock: Clock) -> Found:
    itk = import_module("itk")
    fixed, moving = (itk.imread(str(inputs / name), itk.F) for name in (FIXED, MOVING))
    parameters = itk.ParameterObject.New()
    for name in ("affine", "bspline"):
        parameters.AddParameterMap(parameters.GetDefaultParameterMap(name))
    with clock:  # number_of_threads above 1 crashes it (its issue 295); the environment limits ITK's threads as well
        _, found = itk.elastix_registration_method(fixed, moving, parameter_object=parameters)
    field = itk.transformix_deformation_field(moving, found, output_directory=str(out))
    return "lps_mm", itk.array_from_image(field).transpose(2, 1, 0, 3)


# -- dipy --------------------------------------------------------------------------------------------------------
def dipy_syn(inputs: Path, out: Path, clock: Clock) -> Found:
    align, nibabel, np = (import_module(name) for name in ("dipy.align", "nibabel", "numpy"))
    fixed, moving = (nibabel.load(inputs / name) for name in (FIXED, MOVING))
    arrays = [each.get_fdata() for each in (moving, fixed)]
    affines = {"moving_affine": moving.affine, "static_affine": fixed.affine}
    with clock:
        _, linear = align.affine_registration(*arrays, **affines)
        _, mapping = align.syn_registration(*arrays, **affines, prealign=linear)
    voxels = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in fixed.shape], indexing="ij"), -1).reshape(-1, 3)
    world = voxels @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    moved = np.asarray(mapping.transform_points(world))
    return "ras_mm", (moved - world).reshape(*fixed.shape, 3)


# -- tools in PyTorch --------------------------------------------------------------------------------------------
def convex_adam(inputs: Path, out: Path, clock: Clock) -> Found:
    tool, nibabel = (import_module(name) for name in ("convexAdam.convex_adam_MIND", "nibabel"))
    fixed, moving = (nibabel.load(inputs / name).get_fdata() for name in (FIXED, MOVING_ON_FIXED))
    with clock:
        found = tool.convex_adam_pt(fixed, moving)
    return "voxel", found


def fireants_greedy(inputs: Path, out: Path, clock: Clock) -> Found:
    images, sitk = (import_module(name) for name in ("fireants.io", "SimpleITK"))
    affine_module, greedy_module = (import_module(f"fireants.registration.{name}") for name in ("affine", "greedy"))
    fixed, moving = (
        images.BatchedImages([images.Image.load_file(str(inputs / name), device="cpu")]) for name in (FIXED, MOVING)
    )
    with clock:
        affine = affine_module.AffineRegistration(
            [4, 2, 1], [200, 100, 50], fixed, moving, optimizer="Adam", optimizer_lr=3e-3, cc_kernel_size=5
        )
        affine.optimize()
        greedy = greedy_module.GreedyRegistration(
            scales=[4, 2, 1],
            iterations=[200, 100, 25],
            fixed_images=fixed,
            moving_images=moving,
            cc_kernel_size=5,
            deformation_type="compositive",
            smooth_grad_sigma=1,
            optimizer="adam",
            optimizer_lr=0.5,
            init_affine=affine.get_affine_matrix().detach(),
        )
        greedy.optimize()
    greedy.save_as_ants_transforms(str(out / "warp.nii.gz"))
    field = sitk.ReadImage(str(out / "warp.nii.gz"), sitk.sitkVectorFloat64)
    return "lps_mm", sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3)


def deepali_ffd(inputs: Path, out: Path, clock: Clock) -> Found:
    """Its example's levels, spacing of control points, optimizer and weight of bending, with LCC as similarity."""
    torch, data, spatial = (import_module(name) for name in ("torch", "deepali.data", "deepali.spatial"))
    core = import_module("deepali.core")
    grid = core.Grid.from_file(inputs / FIXED).align_corners_(True)
    fixed, moving = (data.Image.read(inputs / name, dtype=torch.float32) for name in (FIXED, MOVING_ON_FIXED))
    with clock:
        pyramids = [data.Image(image.tensor() / image.tensor().max(), grid).pyramid(3) for image in (fixed, moving)]
        model = spatial.FreeFormDeformation(pyramids[0][2].grid(), groups=1, stride=8)
        for level in (2, 1, 0):
            images = [pyramid[level] for pyramid in pyramids]
            model.grid_(images[0].grid())
            _deepali_level(model, spatial.ImageTransformer(model), [image.batch().tensor() for image in images])
    with torch.no_grad():
        cube = model.update().disp(grid)[0]  # (3, Z, Y, X), x first, in half extents between the outer centers
        half = (torch.tensor([float(n - 1) for n in grid.size()]) / 2).reshape(3, 1, 1, 1)
        return "voxel", (cube * half).permute(3, 2, 1, 0).numpy()


def _deepali_level(model: Any, warp: Any, images: list[Any]) -> None:
    """100 steps of Adam with gradients normalized at each control point, as its hooks do it.

    The example's early stop is left out: it was set for segmentations, and with LCC ends after a step or two.
    """
    torch, losses = import_module("torch"), import_module("deepali.losses")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    similarity, bending = losses.LCC(), losses.BSplineBending(stride=8)
    for _ in range(100):
        optimizer.zero_grad()
        loss = similarity(warp(images[1]), images[0]) + 0.005 * bending(model.params)
        loss.backward()
        for parameter in model.parameters():
            torch.nn.functional.normalize(parameter.grad, dim=1, out=parameter.grad)
        optimizer.step()


PEERS = {
    "ants": Peer("ANTsPy SyN", "antspyx", ("ants",), 'registration(type_of_transform="SyN")', ants_syn),
    "sitk-demons": Peer(
        "SimpleITK demons",
        "SimpleITK",
        ("SimpleITK",),
        "affine as in SimpleITK-Notebooks 60 but on every voxel, histogram matching of DemonsRegistration2, then the 3 "
        "levels of SimpleITK-Notebooks 66 with DiffeomorphicDemonsRegistrationFilter",
        sitk_demons,
    ),
    "sitk-bspline": Peer(
        "SimpleITK B-spline",
        "SimpleITK",
        ("SimpleITK",),
        "affine as in SimpleITK-Notebooks 60 but on every voxel, then its example ImageRegistrationMethodBSpline3",
        sitk_bspline,
    ),
    "elastix": Peer(
        "elastix B-spline", "itk-elastix", ("itk",), 'default parameter maps "affine" and "bspline"', elastix_bspline
    ),
    "convexadam": Peer(
        "convexAdam", "convexadam", ("convexAdam.convex_adam_MIND",), "convex_adam_pt(), MIND features", convex_adam
    ),
    "fireants": Peer(
        "FireANTs greedy",
        "fireants",
        ("fireants.io", "fireants.registration.greedy"),
        "affine and greedy of its quickstart, on the CPU",
        fireants_greedy,
    ),
    "deepali": Peer(
        "deepali FFD",
        "hf-deepali",
        ("deepali.data", "deepali.losses", "deepali.spatial"),
        "params.yaml of its example ffd, with LCC and without the early stop; no affine stage",
        deepali_ffd,
    ),
    "dipy": Peer(
        "dipy SyN", "dipy", ("dipy.align",), "affine_registration(), then syn_registration(), metric CC", dipy_syn
    ),
}


# -- what this file does as a program ------------------------------------------------------------------------------
def probe(name: str) -> dict[str, str]:
    """The version, or the reason why the tool cannot be had."""
    peer = PEERS[name]
    try:
        for module in peer.modules:
            import_module(module)
        return {"version": importlib.metadata.version(peer.distribution)}
    except Exception as error:  # a package may fail to load in any way
        return {"reason": f"{type(error).__name__}: {error}".splitlines()[0]}


def run(name: str, inputs: Path, out: Path) -> None:
    clock = Clock()
    unit, field = PEERS[name].run(inputs, out, clock)
    np = import_module("numpy")
    np.save(out / "field.npy", np.asarray(field, dtype=np.float32))
    (out / "outcome.json").write_text(json.dumps({"unit": unit, "seconds": clock.seconds}), encoding="utf-8")


def watch(out: Path, timeout: float, command: list[str]) -> None:
    """Run a command and write how it ended, its seconds and its peak memory.

    A process of its own for each: a child's peak memory counts that of the process it was forked from.
    """
    started = time.perf_counter()
    with (out / "log.txt").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status: int | None = child.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
            _stop(child)
    result = {"status": status, "seconds": time.perf_counter() - started, "peak_mb": _peak_mb()}
    (out / "watched.json").write_text(json.dumps(result), encoding="utf-8")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a child and what it started."""
    if hasattr(os, "killpg"):
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()


def _peak_mb() -> float | None:
    """Largest memory of any one process that this one waited for."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    verb, *rest = sys.argv[1:]
    if verb == "probe":
        print(json.dumps(probe(rest[0])))
    elif verb == "run":
        run(rest[0], Path(rest[1]), Path(rest[2]))
    else:
        watch(Path(rest[0]), float(rest[1]), rest[2:])


if __name__ == "__main__":
    main()
