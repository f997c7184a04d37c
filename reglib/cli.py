"""`reglib ...`: thin commands over the library. Nothing imports this module.

A command checks its inputs, works, and writes; bad input is one line on stderr and exit status 2, with nothing
written. Imports that take seconds stand inside the commands, so that `reglib --help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import time
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import Abort, TyperException

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
LOG_LEVEL = "REGLIB_LOG_LEVEL"  # environment variable

app = typer.Typer(
    name="reglib",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Medical image registration: bend a moving image onto a fixed one, and measure how well it went.",
)
data_app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, help="Folders of scans.")
app.add_typer(data_app, name="data")
retina_app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, help="Photographs of eyes.")
app.add_typer(retina_app, name="retina")


class Model(StrEnum):
    diffeo = "diffeo"
    symmetric = "symmetric"
    svf = "svf"
    ffd = "ffd"
    dense = "dense"
    affine = "affine"
    rigid = "rigid"


class Similarity(StrEnum):
    lncc = "lncc"
    ncc = "ncc"
    mse = "mse"
    mi = "mi"
    nmi = "nmi"
    ngf = "ngf"
    mind = "mind"


class Quality(StrEnum):
    fast = "fast"
    accurate = "accurate"


class Scaling(StrEnum):
    none = "none"
    minmax = "minmax"
    percentiles = "percentiles"


class Alignment(StrEnum):
    rigid = "rigid"
    affine = "affine"


class Estimator(StrEnum):
    ransac = "ransac"
    lmeds = "lmeds"
    magsac = "magsac"


class RetinalModel(StrEnum):
    homography = "homography"
    quadratic = "quadratic"


class Part(StrEnum):
    train = "train"
    valid = "valid"
    test = "test"


class LabelMode(StrEnum):
    linear = "linear"
    nearest = "nearest"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Out = Annotated[Path, typer.Option("--out", "-o", help="Where to write.")]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default all cores.")]
FixedLabels = Annotated[Path | None, typer.Option(help="Label map on the fixed image's grid.")]
MovingLabels = Annotated[Path | None, typer.Option(help="Label map on the moving image's grid.")]
FixedPoints = Annotated[Path | None, typer.Option(help="CSV with header x,y,z, RAS+ mm.")]
MovingPoints = Annotated[Path | None, typer.Option(help="The same landmarks in the moving image.")]
FixedMask = Annotated[Path | None, typer.Option(help="Where to compare, on the fixed grid.")]
MovingMask = Annotated[Path | None, typer.Option(help="Where to compare, on the moving grid.")]


@app.command()
def register(
    fixed: Annotated[Path, typer.Argument(help="The image that stays.")],
    moving: Annotated[Path, typer.Argument(help="The image to bend onto it.")],
    out: Out,
    transform: Annotated[Model, typer.Option(help="The family of maps.")] = Model.diffeo,
    no_affine: Annotated[bool, typer.Option("--no-affine", help="Skip the affine alignment before.")] = False,
    similarity: Annotated[Similarity, typer.Option(help="What alike means.")] = Similarity.lncc,
    quality: Annotated[Quality, typer.Option(help="Coarse levels only, or all.")] = Quality.accurate,
    fixed_labels: FixedLabels = None,
    moving_labels: MovingLabels = None,
    fixed_points: FixedPoints = None,
    moving_points: MovingPoints = None,
    fixed_mask: FixedMask = None,
    moving_mask: MovingMask = None,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
) -> None:
    """Register MOVING to FIXED; writes the warped image, the map, its inverse, measures and a picture to OUT."""
    from . import pipeline

    case = pipeline.load_case(
        fixed,
        moving,
        fixed_labels=fixed_labels,
        moving_labels=moving_labels,
        fixed_points=fixed_points,
        moving_points=moving_points,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
    )
    settings = pipeline.Settings(
        transform, similarity, quality, affine_first=not no_affine, progress=sys.stderr.isatty()
    )
    metrics = pipeline.register_case(case, settings, out, device=_device(device, threads))
    _say(metrics, out)
    if metrics["interrupted"]:
        raise typer.Exit(INTERRUPTED)


@app.command()
def warp(
    image: Annotated[Path, typer.Argument(help="The moving image or label map.")],
    ddf: Annotated[Path, typer.Argument(help="A ddf as `reglib register` writes it.")],
    out: Out,
    labels: Annotated[bool, typer.Option("--labels", help="IMAGE holds labels: read the nearest.")] = False,
    points: Annotated[Path | None, typer.Option(help="Fixed landmarks to take to the moving image.")] = None,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
) -> None:
    """Apply DDF to IMAGE and write the result, on the ddf's grid, to OUT. With --points, write those instead."""
    from . import pipeline

    if labels and points is not None:
        raise typer.BadParameter("--labels and --points exclude each other; choose one.")
    pipeline.warp_file(image, ddf, out, labels=labels, points=points, device=_device(device, threads))
    print(out)


@app.command()
def invert(ddf: Path, out: Out, device: DeviceOption = Device.auto, threads: Threads = None) -> None:
    """Write the inverse of DDF, on the same grid, to OUT, and print what is left of a round trip."""
    from . import pipeline

    residual = pipeline.invert_file(ddf, out, device=_device(device, threads))
    print(f"{out}: round trip leaves {residual.mean():.4f} voxels on average, {residual.max():.4f} at most")


@app.command()
def evaluate(
    fixed: Path,
    moving: Path,
    ddf: Path,
    out: Annotated[Path, typer.Option("--out", "-o", help="metrics.json to write.")],
    fixed_labels: FixedLabels = None,
    moving_labels: MovingLabels = None,
    fixed_points: FixedPoints = None,
    moving_points: MovingPoints = None,
    fixed_mask: FixedMask = None,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
) -> None:
    """Measure how well DDF maps FIXED to MOVING: similarity, folding, and Dice or TRE where given."""
    from . import pipeline

    case = pipeline.load_case(
        fixed,
        moving,
        fixed_labels=fixed_labels,
        moving_labels=moving_labels,
        fixed_points=fixed_points,
        moving_points=moving_points,
        fixed_mask=fixed_mask,
    )
    _say(pipeline.evaluate_case(case, ddf, out, device=_device(device, threads)), out)


@app.command()
def doctor(files: Annotated[list[Path], typer.Argument(help="Images to examine.")]) -> None:
    """Report where the voxels of each file are and what is wrong; status 0 no fault, 1 faults, 2 could not run."""
    from . import io

    missing = [str(path) for path in files if not path.exists()]
    if missing:
        raise FileNotFoundError(f"no such file: {', '.join(missing)}. Check the path.")
    reports = [io.doctor(path) for path in files]
    print("\n\n".join(str(report) for report in reports))
    raise typer.Exit(0 if all(report.ok for report in reports) else 1)


@app.command()
def train(
    config: Annotated[list[Path], typer.Option("--config-path", "-c", help="YAML files, merged; the later ones win.")],
    log_dir: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("logs"),
    exp_name: Annotated[str, typer.Option("--exp-name", "-n", help="This run; default the time.")] = "",
    max_epochs: Annotated[int, typer.Option(help="At most so many; -1 for the file's.")] = -1,
    ckpt_path: Annotated[Path | None, typer.Option("--ckpt-path", "-k", help="A checkpoint to begin from.")] = None,
    num_workers: Annotated[int, typer.Option(help="Processes that read.")] = 0,
    module: Annotated[list[str] | None, typer.Option(help="Modules that register losses or networks.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write what TensorBoard shows.")] = False,
    gpu: Annotated[str | None, typer.Option("--gpu", "-g", help='DeepReg\'s: "" is the CPU.')] = None,
    gpu_allow_growth: Annotated[bool, typer.Option("--gpu-allow-growth", "-gr", hidden=True)] = False,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
) -> None:
    """Train a network as DeepReg's configuration files say; a stopped run of the same name goes on.

    With REGLIB_LOG_LEVEL=INFO every epoch is told on stderr, with DEBUG every batch.
    """
    from . import config as configuration
    from . import io
    from . import train as training
    from .config.names import load_modules

    _device(Device.cpu if gpu == "" else device, threads)
    load_modules(module or [])
    settings = configuration.load(list(config))
    made = configuration.build(settings)
    epochs = settings.train.epochs if max_epochs < 0 else min(max_epochs, settings.train.epochs)
    out = io.require_writable(log_dir / (exp_name or time.strftime("%Y%m%d-%H%M%S")))
    batches = made.batches("train", workers=num_workers)
    if batches is None:
        raise ValueError("dataset.train.dir is empty; there is nothing to train on.")
    if ckpt_path is not None:
        training.load_checkpoint(ckpt_path, made.network)
    with io.write_atomically(out / "config.yaml") as temporary:
        temporary.write_text(configuration.as_yaml(settings), encoding="utf-8")
    history = training.fit(
        made.network,
        batches,
        made.objective,
        epochs=epochs,
        out=out,
        valid=made.batches("valid"),
        optimizer=made.optimizer,
        save_every=settings.train.save_period,
        tensorboard=tensorboard,
        device="cpu" if gpu == "" else device.value,
        progress=sys.stderr.isatty(),
    )
    if history.records:
        last = {name: value for name, value in history.records[-1].items() if name not in ("epoch", "lr", "seconds")}
        print(f"{len(history.records)} epochs: " + ", ".join(f"{name} {value:.4g}" for name, value in last.items()))
    print(training.latest_checkpoint(out / "save") or out)
    if history.stopped:
        raise typer.Exit(INTERRUPTED)


@app.command()
def predict(
    ckpt_path: Annotated[Path, typer.Option("--ckpt-path", "-k", help="A checkpoint of `reglib train`.")],
    split: Annotated[Part, typer.Option(help="Which pairs.")] = Part.test,
    config: Annotated[
        list[Path] | None, typer.Option("--config-path", "-c", help="YAML files; default the run's config.yaml.")
    ] = None,
    log_dir: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("logs"),
    exp_name: Annotated[str, typer.Option("--exp-name", "-n", help="This run; default the time.")] = "",
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Pairs at once.")] = 1,
    save_nifti: Annotated[bool, typer.Option("--save-nifti/--no-nifti", help="Write NIfTI files.")] = True,
    save_png: Annotated[bool, typer.Option("--save-png/--no-png", help="Write slices as PNG.")] = True,
    labels: Annotated[LabelMode, typer.Option(help="How masks are read.")] = LabelMode.linear,
    module: Annotated[list[str] | None, typer.Option(help="Modules that register losses or networks.")] = None,
    num_workers: Annotated[int, typer.Option(hidden=True)] = 0,
    gpu: Annotated[str | None, typer.Option("--gpu", "-g", help='DeepReg\'s: "" is the CPU.')] = None,
    gpu_allow_growth: Annotated[bool, typer.Option("--gpu-allow-growth", "-gr", hidden=True)] = False,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
) -> None:
    """Register all pairs of a split by a trained network; writes images, maps and tables to LOG-DIR/EXP-NAME/SPLIT."""
    from . import config as configuration
    from . import train as training
    from .config.names import load_modules

    where = _device(Device.cpu if gpu == "" else device, threads)
    load_modules(module or [])
    run = ckpt_path.parent.parent if ckpt_path.parent.name == "save" else ckpt_path.parent
    made = configuration.build(configuration.load(list(config or [run / "config.yaml"])))
    training.load_checkpoint(ckpt_path, made.network)
    pairs = made.dataset(split.value, whole=True)
    if pairs is None:
        raise ValueError(f"dataset.{split.value}.dir is empty; there is nothing to predict.")
    out = log_dir / (exp_name or time.strftime("%Y%m%d-%H%M%S")) / split.value
    table = training.predict(
        made.network,
        pairs,
        out,
        labels=labels.value,
        nifti=save_nifti,
        png=save_png,
        batch_size=batch_size,
        device=where,
        progress=sys.stderr.isatty(),
    )
    for name in table.columns.drop(["pair_index", "label_index"]):
        print(f"{name:>20}  {table[name].mean():.4g}")
    print(out)


@app.command()
def vis(
    mode: Annotated[int, typer.Option("--mode", "-m", min=0, max=3, help="0 slices, 1 warp, 2 tiles, 3 tiled GIF.")],
    image_paths: Annotated[str, typer.Option("--image-paths", "-i", help="Files, with commas between.")],
    save_path: Annotated[Path, typer.Option("--save-path", "-s", help="Folder to write to.")] = Path(),
    ddf_path: Annotated[Path | None, typer.Option(help="Mode 1: a ddf.")] = None,
    slice_inds: Annotated[str, typer.Option(help="Modes 1, 2: slices, with commas; default the middle one.")] = "",
    num_interval: Annotated[int, typer.Option(help="Mode 1: pictures from 0 to the whole ddf.")] = 100,
    interval: Annotated[int, typer.Option(help="Milliseconds a picture.")] = 50,
    col_titles: Annotated[str, typer.Option(help="Modes 2, 3: titles, with commas.")] = "",
    fname: Annotated[str, typer.Option(help="Modes 2, 3: name of the file.")] = "",
    size: Annotated[str, typer.Option(help="Mode 3: rows,columns.")] = "",
) -> None:
    """Make GIFs and tiles of slices, as deepreg_vis does."""
    from . import vis as visual

    images = [Path(word.strip()) for word in image_paths.split(",") if word.strip()]
    chosen, shape = _numbers(slice_inds, "slice-inds"), _numbers(size, "size")
    titles = [word.strip() for word in col_titles.split(",") if word.strip()]
    if mode == 0:
        written = visual.slices_gifs(images, save_path, interval_ms=interval)
    elif mode == 1:
        if ddf_path is None:
            raise ValueError("mode 1 bends an image by a ddf; give --ddf-path.")
        how: dict[str, Any] = {"slice_indices": chosen, "count": num_interval, "interval_ms": interval}
        written = visual.warp_gifs(images, ddf_path, save_path, **how)
    elif mode == 2:
        written = [visual.tiles(images, save_path, slice_indices=chosen, titles=titles, name=fname)]
    else:
        if shape and len(shape) != 2:
            raise ValueError(f"size must be rows,columns, such as 2,2; got {size}.")
        grid = (shape[0], shape[1]) if shape else None
        more: dict[str, Any] = {"titles": titles, "name": fname, "interval_ms": interval}
        written = [visual.tiled_gif(images, save_path, size=grid, **more)]
    for path in written:
        print(path)


def _numbers(words: str, name: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",") if word.strip()]
    except ValueError:
        raise ValueError(f"--{name} must be whole numbers with commas between, such as 12,20; got {words}.") from None


@data_app.command()
def inspect(folder: Annotated[Path, typer.Argument(help="A split, or the folder of train, valid and test.")]) -> None:
    """List a data set's scans and all that is wrong with them; status 0 no fault, 1 faults, 2 could not run."""
    from . import data

    found = data.inspect(folder, progress=sys.stderr.isatty())
    print(found)
    raise typer.Exit(0 if found.ok else 1)


@data_app.command()
def prepare(
    folder: Annotated[Path, typer.Argument(help="A split, or the folder of train, valid and test.")],
    out: Out,
    orientation: Annotated[str | None, typer.Option(help="List the axes in this order, such as RAS.")] = None,
    spacing: Annotated[list[float] | None, typer.Option(help="mm per voxel; once, or once an axis.")] = None,
    shape: Annotated[list[int] | None, typer.Option(help="Voxels, once an axis, over the same field of view.")] = None,
    size: Annotated[list[int] | None, typer.Option(help="Cut or fill to so many voxels, once an axis.")] = None,
    multiple: Annotated[int | None, typer.Option(help="Fill to a multiple, 16 for four halvings.")] = None,
    window: Annotated[tuple[float, float] | None, typer.Option(help="Clamp intensities: LOW HIGH.")] = None,
    scale: Annotated[Scaling, typer.Option(help="Bring intensities to [0, 1].")] = Scaling.none,
    structures: Annotated[list[int] | None, typer.Option(help="Labels of a map that become channels.")] = None,
    remove_bed: Annotated[bool, typer.Option("--remove-bed", help="CT: all but the body becomes air.")] = False,
    reference: Annotated[Path | None, typer.Option(help="Lay each scan on this image.")] = None,
    model: Annotated[Alignment, typer.Option(help="How it is laid on the reference.")] = Alignment.affine,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the scans.")] = 1,
) -> None:
    """Make all scans of FOLDER ready and write them to OUT in the same layout; a stopped run goes on where it was."""
    from .data import Reading
    from .preparation import Preparation
    from .preparation import prepare as prepare_folder

    reading = Reading(
        orientation=orientation,
        spacing=spacing[0] if spacing is not None and len(spacing) == 1 else spacing,
        shape=shape,
        multiple=multiple,
        window=window,
        scale=scale.value,
        structures=None if structures is None else tuple(structures),
    )
    preparation = Preparation(remove_bed, reference, model.value, reading, size)
    manifest = prepare_folder(folder, out, preparation, workers=workers, progress=sys.stderr.isatty())
    print(f"{len(manifest['scans'])} scans in {out}, what was done in {out / 'manifest.json'}")


@data_app.command("list")
def list_data() -> None:
    """Name the public data sets that can be got, or made as stand-ins."""
    for name, source in _scripts().manifest().items():
        size = f"{source.bytes / 1e6:.0f} MB" if source.files else "by hand"
        print(f"{name:24}{source.kind:10}{size:>9}  {source.title} ({source.licence})")


@data_app.command()
def get(name: str, out: Annotated[Path | None, typer.Option("--out", "-o")] = None) -> None:
    """Download the data set NAME, check it, and write it in our layout."""
    raise typer.Exit(_run_script(name, out, []))


@data_app.command()
def make(name: str, out: Annotated[Path | None, typer.Option("--out", "-o")] = None) -> None:
    """Make a stand-in of the data set NAME, in its layout and with its truth."""
    raise typer.Exit(_run_script(name, out, ["--make"]))


def _scripts() -> Any:
    """The module of `data_scripts` that all scripts share."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "data_scripts" / "script.py").is_file():
        raise ValueError(
            "this command needs data_scripts/, which is in a checkout of the project and not in its wheel."
        )
    sys.path.insert(0, str(root))
    from importlib import import_module

    return import_module("data_scripts.script")


def _run_script(name: str, out: Path | None, words: list[str]) -> int:
    from difflib import get_close_matches
    from importlib import import_module

    script = _scripts()
    names = list(script.manifest())
    if name not in names:
        close = get_close_matches(name, names, n=1)
        raise ValueError(f"there is no data set {name}; {f'do you mean {close[0]}?' if close else ', '.join(names)}")
    module = import_module(f"data_scripts.{name}")
    words = [*words, *([] if out is None else ["--out", str(out)])]
    status: int = script.run(name, module.make, getattr(module, "arrange", None), words)
    return status


NetworkOption = Annotated[Path | None, typer.Option(help="A checkpoint of SuperRetina, instead of SIFT.")]
SizeOption = Annotated[int, typer.Option(min=64, help="Pixels along the longer side in which to look.")]
RatioOption = Annotated[
    float | None,
    typer.Option(
        min=0.01, max=1.0, help="How much nearer a match than the next best; 0.8 for SIFT, 0.9 for a network."
    ),
]
MethodOption = Annotated[Estimator, typer.Option(help="How to choose among matches.")]
ThresholdOption = Annotated[float, typer.Option(min=0.1, help="Pixels within which a match agrees.")]
OnePass = Annotated[bool, typer.Option("--one-pass", help="Do not look a second time at what was laid.")]


def _how(
    network: Path | None, size: int, ratio: float | None, method: Estimator, threshold: float, one_pass: bool
) -> dict[str, Any]:
    """The options that both commands share, as `keypoints.align` names them."""
    chosen = ratio or (0.8 if network is None else 0.9)
    return {"size": size, "ratio": chosen, "method": method.value, "threshold": threshold, "refine": not one_pass}


@retina_app.command("align")
def align_photographs(
    query: Annotated[Path, typer.Argument(help="The photograph that moves.")],
    reference: Annotated[Path, typer.Argument(help="The photograph that stays.")],
    out: Out,
    network: NetworkOption = None,
    size: SizeOption = 768,
    ratio: RatioOption = None,
    method: MethodOption = Estimator.ransac,
    threshold: ThresholdOption = 5.0,
    one_pass: OnePass = False,
    threads: Threads = None,
) -> None:
    """Lay QUERY on REFERENCE; writes the homography, the warped photograph, measures and pictures to OUT."""
    from . import retina

    _device(Device.cpu, threads)
    how = _how(network, size, ratio, method, threshold, one_pass)
    told = retina.align_files(query, reference, out, retina.aligner(network, **how))
    print(f"{told['inliers']} of {told['matches']} matches agree; {told['seconds']:.2f} s")
    print(out)


@retina_app.command("evaluate")
def evaluate_photographs(
    folder: Annotated[Path, typer.Argument(help="In the layout of FIRE or VARIA.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of pairs.csv and metrics.json.")] = Path("scores"),
    network: NetworkOption = None,
    size: SizeOption = 768,
    ratio: RatioOption = None,
    method: MethodOption = Estimator.ransac,
    threshold: ThresholdOption = 5.0,
    one_pass: OnePass = False,
    model: Annotated[
        RetinalModel, typer.Option(help="What is scored; a quadratic map follows the curved back of an eye.")
    ] = RetinalModel.homography,
    threads: Threads = None,
) -> None:
    """Align every pair of FOLDER and score it as the field does."""
    from . import retina

    _device(Device.cpu, threads)
    how = _how(network, size, ratio, method, threshold, one_pass) | {"model": model.value}
    told = retina.evaluate_folder(folder, out, retina.aligner(network, **how), progress=sys.stderr.isatty())
    for name, value in told.items():
        print(f"{name:>20}  {value:.4g}")
    print(out)


@retina_app.command("train")
def train_detector(
    folder: Annotated[Path, typer.Argument(help="With ImageData/ and Annotations/NAME.txt, x and y from 0 to 1.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of detector.pt, history.csv and growth.png.")],
    epochs: Annotated[int, typer.Option(min=1, help="How many in all.")] = 150,
    auxiliary: Annotated[Path | None, typer.Option(help="A folder of photographs without labels.")] = None,
    small: Annotated[
        bool, typer.Option("--small", help="A quarter of the channels, for a machine without GPU.")
    ] = False,
    size: SizeOption = 768,
    squares: Annotated[int, typer.Option(min=0, help="Learn from so many squares of each; 0: whole ones.")] = 0,
    square: Annotated[int, typer.Option(min=32, help="Pixels along the sides of a square.")] = 256,
    lr: Annotated[float, typer.Option(help="Adam's rate.")] = 1e-4,
    agree: Annotated[
        float, typer.Option(min=0.0, help="Weight of two views' agreement; nothing found agrees too.")
    ] = 1.0,
    expands_from: Annotated[int, typer.Option(min=0, help="The first epoch in which labels grow.")] = 0,
    seed: int = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on from OUT/detector.pt.")] = False,
    device: Annotated[Device, typer.Option()] = Device.auto,
    threads: Threads = None,
) -> None:
    """Teach SuperRetina from the labelled photographs of FOLDER; a stopped run goes on."""
    import torch

    from . import keypoints, retina

    chosen = _device(device, threads)
    torch.manual_seed(seed)
    network = keypoints.SuperRetina((16, 16, 32, 32), 64) if small else keypoints.SuperRetina()
    plan = keypoints.Plan(lr=lr, agree=agree, expands_from=expands_from)
    how: dict[str, Any] = {"size": size, "squares": squares, "square": square, "seed": seed, "resume": not fresh}
    how |= {"epochs": epochs, "auxiliary": auxiliary, "progress": sys.stderr.isatty()}
    last = retina.train_folder(folder, out, network.to(chosen), plan, **how)
    for name, value in last.items():
        print(f"{name:>20}  {value:.4g}")
    print(out)


@retina_app.command("export")
def export_network(
    checkpoint: Annotated[Path, typer.Argument(help="Of SuperRetina.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .onnx file to write.")],
    size: SizeOption = 768,
) -> None:
    """Write a network as ONNX for two square images, and check it against PyTorch."""
    from . import keypoints

    apart = keypoints.export_onnx(keypoints.load_superretina(checkpoint), out, size=(size, size))
    print(f"{out}: at most {apart:.2g} from PyTorch")


def _device(device: Device, threads: int | None) -> Any:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if device is Device.cuda and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU, and torch finds none here; use --device cpu or auto.")
    chosen = "cuda" if torch.cuda.is_available() and device is not Device.cpu else "cpu"
    return torch.device(chosen)


def _say(metrics: dict[str, Any], out: Path) -> None:
    shown = {k: v for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    for name, value in shown.items():
        print(f"{name:>20}  {value:.4g}")
    for sentence in metrics.get("warnings", ()):
        print(f"reglib: warning: {sentence}", file=sys.stderr)
    print(out)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 with one line on stderr (doctor: 1 for faults)."""
    _let_threads_sleep()
    _keep_freed_memory()
    if arguments is None:  # this process is ours alone
        _seldom_look_for_garbage()
    try:
        _set_log_level(os.environ.get(LOG_LEVEL, "WARNING"))
    except ValueError as error:
        return _fail(str(error))
    command = typer.main.get_command(app)
    arguments = _as_deepreg_spells(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warning
            status = command.main(args=arguments or ["--help"], prog_name="reglib", standalone_mode=False) or 0
    except TyperException as error:
        return _fail(error.format_message())
    except (Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        return _fail(str(error))
    if status == INTERRUPTED:
        return _fail("stopped; files that were already written are whole.", status=INTERRUPTED)
    return int(status)


def _as_deepreg_spells(arguments: list[str]) -> list[str]:
    """Our spelling of DeepReg's: underscores in options, several files after one --config_path, names before files."""
    result: list[str] = []
    if arguments[:1] == ["warp"]:
        arguments = _warp_as_deepreg_spells(arguments)
    repeated = ""
    for word in arguments:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = name.replace("_", "-") + equals + value
        is_file = not word.startswith("-")
        if is_file and repeated and result[-1] != repeated:
            result.append(repeated)
        repeated = (repeated if is_file else "") if word not in ("--config-path", "-c") else word
        result.append(word)
    return result


def _warp_as_deepreg_spells(arguments: list[str]) -> list[str]:
    """`warp --image A --ddf B` as `warp A B`, to warped.nii.gz if nothing else is said."""
    named: dict[str, str] = {}
    rest = iter(arguments[1:])
    kept = []
    for word in rest:
        name, equals, value = word.partition("=")
        key = {"--image": "image", "-i": "image", "--ddf": "ddf", "-d": "ddf"}.get(name)
        if key is None:
            kept.append(word)
        else:
            named[key] = value if equals else next(rest, "")
    if len(named) < 2:
        return arguments
    where = [] if any(word.partition("=")[0] in ("--out", "-o") for word in kept) else ["--out", "warped.nii.gz"]
    return ["warp", named["image"], named["ddf"], *kept, *where]


def _set_log_level(wanted: str) -> None:
    """What long commands say on stderr: a name of `logging`, or as DeepReg counts, 1 for DEBUG to 5 for CRITICAL.

    Raises: ValueError for anything else.
    """
    names = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    name = dict(zip("012345", ("DEBUG", *names), strict=True)).get(wanted, wanted.upper())
    if name not in names:
        raise ValueError(f"{LOG_LEVEL} must be {', '.join(names)} or a number from 0 to 5; got {wanted!r}.")
    said = logging.StreamHandler()
    said.setFormatter(logging.Formatter("reglib: %(message)s"))
    logger = logging.getLogger("reglib")
    logger.handlers[:] = [said]
    logger.setLevel(name)
    logger.propagate = False


def _let_threads_sleep() -> None:
    """Threads wait for each other awake for some microseconds, then asleep, unless the environment says otherwise.

    On a busy machine, threads that stay awake take a registration two to four times as long; on a quiet one, threads
    that sleep at once make it a fifth slower.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "700"}


def _seldom_look_for_garbage() -> None:
    """What a command drops is freed by reference counts; looking for cycles in what it imports takes 0.3 s of each."""
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)  # the interpreter would look through everything once more before it ends


def _keep_freed_memory() -> None:
    """Let glibc reuse blocks up to 32 MB, its limit, where it would hand each back and ask for it again, page by page.

    A registration makes and drops such blocks a thousand times a minute; this saves a sixth of its time.
    """
    if sys.platform != "linux":
        return
    import ctypes

    trim_threshold, mmap_threshold = -1, -3  # names in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 128 << 20)


def _fail(reason: str, *, status: int = 2) -> int:
    print(f"reglib: {' '.join(reason.split())}", file=sys.stderr)
    return status


def _one_line_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"reglib: warning: {' '.join(str(message).split())}", file=sys.stderr)
