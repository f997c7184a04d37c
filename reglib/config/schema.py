"""What a file may hold, as DeepReg's manual says, and the sentence for what it may not."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .names import nearest

PathLike = str | os.PathLike[str]
Dirs = str | list[str] | None
Options = dict[str, Any]
SPLITS = ("train", "valid", "test")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Split(_Strict):
    """Where the scans of a split are; their format is seen from the files, and `format` may say it."""

    dir: Dirs = None
    format: Literal["nifti", "h5"] = "nifti"
    labeled: bool = False


class Dataset(_Strict):
    """The data: three splits, and who meets whom."""

    train: Split | None = None
    valid: Split | None = None
    test: Split | None = None
    type: Literal["paired", "unpaired", "grouped"]
    sample_label: Literal["sample", "all"] | None = "sample"
    moving_image_shape: list[int] | None = None
    fixed_image_shape: list[int] | None = None
    image_shape: list[int] | None = None
    intra_group_prob: float = 1.0
    intra_group_option: Literal["forward", "backward", "unconstrained"] = "unconstrained"
    sample_image_in_group: bool = True

    @model_validator(mode="before")
    @classmethod
    def _older(cls, values: Any) -> Any:
        """The layout of the tutorials: dir with a folder for each split, format and labeled for all."""
        if not isinstance(values, Mapping) or not isinstance(values.get("dir"), Mapping):
            return values
        shared = {key: values[key] for key in ("format", "labeled") if key in values}
        rest = {key: value for key, value in values.items() if key not in ("dir", "format", "labeled")}
        return {**rest, **{name: {"dir": folder or None, **shared} for name, folder in values["dir"].items()}}

    @field_validator("moving_image_shape", "fixed_image_shape", "image_shape")
    @classmethod
    def _shape(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and (len(value) not in (2, 3) or min(value) < 1):
            raise ValueError(f"a shape has two or three sizes of at least 1; got {value}")
        return value

    @model_validator(mode="after")
    def _shapes(self) -> Dataset:
        needed = ("moving_image_shape", "fixed_image_shape") if self.type == "paired" else ("image_shape",)
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{self.type} data need {' and '.join(missing)}")
        return self


class Loss(_Strict):
    """Lists of {name, weight, options}."""

    image: list[Options] = Field(default_factory=list)
    label: list[Options] = Field(default_factory=list)
    regularization: list[Options] = Field(default_factory=list)

    @field_validator("image", "label", "regularization", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        value = [] if value is None else [value] if isinstance(value, Mapping) else value
        for each in value:
            if not isinstance(each, Mapping) or "name" not in each:
                raise ValueError(f"each loss needs a name, such as {{name: dice, weight: 1.0}}; got {each!r}")
        return value


class Preprocess(_Strict):
    """Batches, and what is done to them. The buffer and the calls in parallel are DeepReg's and change nothing here."""

    batch_size: int = Field(default=1, ge=1)
    shuffle_buffer_num_batch: int = 1
    num_parallel_calls: int = -1
    data_augmentation: list[Options] = Field(default_factory=list)

    @field_validator("data_augmentation", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, Mapping) else value


class Train(_Strict):
    """The training; `update_freq` is DeepReg's and changes nothing here."""

    method: Literal["ddf", "dvf", "conditional", "affine"]
    backbone: Options
    loss: Loss
    optimizer: Options = Field(default_factory=lambda: {"name": "adam"})
    preprocess: Preprocess = Field(default_factory=Preprocess)
    epochs: int = Field(ge=0)
    save_period: int = Field(default=0, ge=0)
    update_freq: Any = None

    @field_validator("backbone", "optimizer")
    @classmethod
    def _has_a_name(cls, value: Options) -> Options:
        if not isinstance(value.get("name"), str):
            raise ValueError("a name is needed, such as {name: local}")
        return value


class Settings(_Strict):
    """A whole file, or several merged."""

    dataset: Dataset
    train: Train


# -- files --------------------------------------------------------------------------------------------------------
class _Loader(yaml.SafeLoader):
    """Reads 1e-5 as a number, which YAML 1.1 takes for a word."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load(paths: PathLike | Sequence[PathLike]) -> Settings:
    """Files merged in their order, checked.

    Raises: FileNotFoundError; ValueError in one sentence for what is not YAML, or not what the schema says.
    """
    return check(merged(paths), where=" + ".join(str(p) for p in _listed(paths)))


def merged(paths: PathLike | Sequence[PathLike]) -> Options:
    """The files as one mapping: what comes later wins, mappings are merged, lists are replaced."""
    whole: Options = {}
    for path in _listed(paths):
        whole = _over(whole, _read(Path(path)))
    return whole


def _listed(paths: PathLike | Sequence[PathLike]) -> list[PathLike]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _read(path: Path) -> Options:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; check the spelling and the folder.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML; it cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold the sections dataset and train; it holds {type(content).__name__}.")
    return content


def _over(below: Options, above: Options) -> Options:
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _over(result[key], value) if both else value
    return result


def check(content: Mapping[str, Any], *, where: str = "the settings") -> Settings:
    """A mapping as settings.

    Raises: ValueError in one sentence.
    """
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{where}: {_said(error)}") from None


def _said(error: ValidationError) -> str:
    """The first fault in words, an unknown key with the nearest known one, and how many more there are."""
    faults = error.errors(include_url=False)
    first = min(faults, key=lambda fault: fault["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"]) or "the file"
    if first["type"] == "extra_forbidden":
        owner = _model(first["loc"][:-1])
        known = list(owner.model_fields)
        words = f"there is no key {place}{nearest(str(first['loc'][-1]), known)}; there are {', '.join(known)}"
    elif first["type"] == "missing":
        words = f"{place} is missing"
    else:
        got = "" if first["type"] == "value_error" else f"; got {first.get('input')!r}"
        words = f"{place}: {first['msg'].removeprefix('Value error, ')}{got}"
    more = len(faults) - 1
    return f"{words}.{f' {more} more fault' + ('s.' if more > 1 else '.') if more else ''}"


def _model(place: Sequence[Any]) -> type[BaseModel]:
    """The part of the schema at a place in a file."""
    model: type[BaseModel] = Settings
    for part in place:
        kind = model.model_fields[str(part)].annotation
        options = [kind, *getattr(kind, "__args__", ())]
        model = next(each for each in options if isinstance(each, type) and issubclass(each, BaseModel))
    return model


def as_yaml(settings: Settings) -> str:
    """A file that says the same, every default written out."""
    return yaml.safe_dump(settings.model_dump(), sort_keys=False)
