"""The configuration: TOML in, validated and complete; an unknown key is an error that names the nearest valid one."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rightreasons.errors import ConfigError
from rightreasons.records import ClassDescription

Share = Annotated[float, Field(gt=0, lt=1)]
Auto = Literal["auto"]
Flips = Literal["off", "horizontal", "both"]
Format = Literal["class-folders", "spuco", "table", "celeba", "isic", "parquet", "huggingface"]
# How a value starts that ``init`` has left for a person to fill in.
UNFILLED = "FILL IN"
# A message on two configurations names so many keys.
MOST_DIFFERENCES = 3


class _Table(BaseModel):
    """A TOML table: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class ColumnsConfig(_Table):
    """Which column of a table of labels has which role, if its name does not say so."""

    image: str | None = Field(default=None, description="the image's file, below the table's folder")
    label: str | None = None
    split: str | None = None
    attribute: str | None = Field(default=None, description="the shortcut, if it is known: for evaluation alone")
    patient: str | None = Field(default=None, description="whose images stay in one split")
    mask: str | None = Field(default=None, description="the file of the shortcut's mask: for evaluation alone")


class DataConfig(_Table):
    """Where the images are: a folder of any known format, or a built-in task."""

    path: str
    format: Auto | Format = Field(default="auto", description="the format of the folder, if it is not recognised")
    table: str | None = Field(default=None, description="the table of labels, if the folder has several")
    columns: ColumnsConfig = ColumnsConfig()
    names: dict[str, str] = Field(default={}, description="the name of the class for each label in the data; '' leaves its images out")
    window: tuple[float, float] | None = Field(default=None, description="the values that are black and white in images of more than 8 bits")
    size: int | None = Field(default=None, ge=8, description="the side in pixels to which every image is resized")
    mode: Literal["grey", "rgb"] | None = Field(default=None, description="the colour mode to which every image is converted")
    flips: Flips = Field(default="off", description="the mirrorings that do not change an image's class: training applies them at random")

    @field_validator("window")
    @classmethod
    def _low_before_high(cls, window: tuple[float, float] | None) -> tuple[float, float] | None:
        if window is not None and window[0] >= window[1]:
            raise ValueError(
                f"black comes before white: the first number must be less than the second, and {window[0]:g} is not less than {window[1]:g}"
            )
        return window


class ModelConfig(_Table):
    """The classifier. Without a checkpoint it is trained first, on the training split, and kept in the run folder."""

    source: str
    checkpoint: str | None = Field(default=None, description="the weights of a classifier that is already trained on these classes")
    classes: tuple[str, ...] | None = Field(default=None, description="the order of the network's outputs; default: the checkpoint's or the data's")
    pretrained: bool | str = Field(default=False, description="weights to start from: the source's own (true), or a file; the last layer may differ")
    mean: tuple[float, ...] | None = Field(
        default=None, description="the input's mean for each channel of the network, in 0 to 1; default: the source's"
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(default=None, description="the input's deviation for each channel")
    channels: Literal["rgb", "bgr"] | None = Field(default=None, description="the order in which the network takes colours; default: the source's")
    epochs: int = Field(default=10, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    batch_size: int = Field(default=64, ge=2)

    @field_validator("source")
    @classmethod
    def _read_old_name(cls, source: str) -> str:
        """Reads the name that older run folders have for the packaged network."""
        return "packaged:small-mlp" if source == "python:rightreasons.models:small_mlp" else source

    @model_validator(mode="after")
    def _both_or_none(self) -> ModelConfig:
        if len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean and std go together, with one number per channel each")
        return self


class ClassConfig(_Table):
    """An expert's words on one class: what matters, what does not; either may be missing, not both."""

    description: str = ""
    irrelevant: str = ""

    @model_validator(mode="after")
    def _some_words(self) -> ClassConfig:
        if not (self.description.strip() or self.irrelevant.strip()):
            raise ValueError("a class needs a description, an irrelevant, or both, and this one has neither")
        return self


class SampleConfig(_Table):
    """Which training images are inspected."""

    strategy: Literal["low-entropy", "random", "high-entropy"] = "low-entropy"
    size: int = Field(default=100, ge=1)
    per_class: Annotated[int, Field(ge=1)] | Literal["auto", "off"] = "auto"


class AttributeConfig(_Table):
    """How effects are computed. Integrated Gradients cover every differentiable network, at ten to twenty times the cost; LRP covers plain CNNs.

    Heatmaps that are ``given`` explain the inspected images; the scores need heatmaps of other models as well, which are ``computed``.
    """

    method: Literal["deeplift-shap", "integrated-gradients", "lrp", "given"] = "deeplift-shap"
    path: str | None = Field(default=None, description="the folder of given heatmaps, one file for each image")
    computed: Literal["deeplift-shap", "integrated-gradients", "lrp"] | None = Field(
        default=None, description='the method for heatmaps that nobody gave, with method = "given"; default: deeplift-shap'
    )
    baselines: int = Field(default=10, ge=1)
    chunk: Annotated[int, Field(ge=1)] | Auto = Field(default="auto", description="images attributed at once; default: as many as a gibibyte holds")

    @property
    def computing(self) -> Literal["deeplift-shap", "integrated-gradients", "lrp"]:
        """The method for heatmaps that are computed."""
        return self.method if self.method != "given" else self.computed or "deeplift-shap"

    @model_validator(mode="after")
    def _given_from_somewhere(self) -> AttributeConfig:
        if (self.method == "given") != (self.path is not None):
            raise ValueError('path and method = "given" go together: path is the folder with a heatmap for each image')
        if self.computed is not None and self.method != "given":
            raise ValueError('computed is for method = "given"; otherwise method computes all heatmaps')
        return self


class SegmentConfig(_Table):
    """How heatmaps are cut into segments: by a weighted Gaussian mixture on the positive effect (PPEPS-WGM).

    The other methods cut the picture, whatever the heatmap, and the ``components`` regions with the most positive effect are kept: for comparison.
    """

    method: Literal["ppeps-wgm", "slic", "felzenszwalb", "sam", "grid", "given"] = "ppeps-wgm"
    regions: str | None = Field(
        default=None, description='the file of marks that are the segments, with method = "given": COCO, Label Studio or CVAT'
    )
    weights: str | None = Field(default=None, description="SAM's weights: a folder, or the name of a model in Hugging Face's cache")
    points: Literal["place", "place+colour"] = Field(
        default="place", description="what tells a segment's pixels from others: with colour, thin marks are told from the object under them"
    )
    components: Annotated[int, Field(ge=1, le=20)] | Auto = 5
    smooth: Annotated[float, Field(ge=0, le=0.5)] | Auto = "auto"
    peak_share: Annotated[float, Field(ge=0, lt=1)] = 0.15

    @field_validator("peak_share", mode="before")
    @classmethod
    def _read_old_peak_share(cls, value: object) -> object:
        """Reads the "auto" of older run folders, in which the default was not yet a number."""
        return 0.15 if value == "auto" else value

    @model_validator(mode="after")
    def _fits_its_method(self) -> SegmentConfig:
        if (self.method == "sam") != (self.weights is not None):
            raise ValueError('weights and method = "sam" go together: SAM needs weights that lie on this machine, and the other methods have none')
        if (self.method == "given") != (self.regions is not None):
            raise ValueError('regions and method = "given" go together: regions is the file with the marks that are the segments')
        if self.method != "ppeps-wgm" and self.components == "auto":
            raise ValueError(f'components = "auto" is for method = "ppeps-wgm"; {self.method} needs the number of segments that are kept')
        return self


class CriticConfig(_Table):
    """The vision-language model that criticises and judges."""

    lvlm: str
    judge: str | None = Field(default=None, description="another model for the judge; default: the same")
    base_url: str | None = Field(
        default=None, description="the server's address; default: port 8000 of this machine for openai:, else the provider's own"
    )
    judge_base_url: str | None = Field(
        default=None, description="the address of the judge's server; default: base_url if the judge is of the same kind"
    )
    timeout: Annotated[float, Field(gt=0, le=3000)] = Field(default=180.0, description="seconds for one answer, from the first byte to the last")
    max_tokens: Annotated[int, Field(ge=64)] | None = Field(default=None, description="cap on any answer; default: 2048, and 512 for the judge")
    mode: Literal["two-call", "fused"] = Field(default="two-call", description="critic, then judge; or both in one structured answer")
    votes: Annotated[int, Field(ge=1, le=9)] = Field(default=1, description="how often the critic is asked about an image, with permuted IDs; odd")
    agreement: bool = Field(default=True, description="count a verdict as unsure that the verdicts on like segments of other images contradict")
    close_up: bool = Field(default=False, description="ask once more, with a close-up, about each segment of which the answer is unsure")
    max_usd: Annotated[float, Field(ge=0)] | None = Field(default=None, description="stop before the next request could pass this many US dollars")
    prices: str | None = Field(default=None, description="a file like lvlm/ledger/prices.toml, whose prices override the packaged ones")
    examples: str | None = Field(default=None, description="a file of critique -> verdict pairs for the judge; default: the packaged one")

    @field_validator("votes")
    @classmethod
    def _odd(cls, votes: int) -> int:
        if votes % 2 == 0:
            raise ValueError("the number of votes has to be odd, so that there is a majority")
        return votes


class AlignConfig(_Table):
    """Right-reasons fine-tuning."""

    term: Literal["swap", "penalty", "swap+penalty", "none"] = "swap+penalty"
    penalty: Literal["effect", "jacobian", "log_prob_sum"] = "effect"
    lambda_: Annotated[float, Field(gt=0)] | Auto = Field(default="auto", alias="lambda")
    gamma: float = Field(default=0.0, ge=0)
    mask: Literal["effect", "segment"] = "effect"
    spread: bool = Field(default=True, description="also find the shortcut in images that nobody inspected, by a probe on the model's features")
    layers: Literal["all", "last-blocks", "head"] = "all"
    epochs: int = Field(default=5, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    batch_size: int = Field(default=64, ge=4)
    ratio: Share = 0.25
    max_accuracy_drop: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="how far held-out accuracy with the shortcut made useless may fall; plain accuracy too, unless half of its fall is gained there",
    )

    @field_validator("term", mode="before")
    @classmethod
    def _read_old_term(cls, value: object) -> object:
        """Reads the "auto" of older run folders, in which the default had no name yet."""
        return "swap+penalty" if value == "auto" else value


class RunConfig(_Table):
    """What makes a run repeatable, and who else is told of it."""

    seed: int = Field(default=0, ge=0)
    log: tuple[Literal["mlflow", "tensorboard"], ...] = Field(
        default=(), description="where settings, scores and the course of fine-tuning are logged as well: in the run folder, or as MLflow is told"
    )


class Config(_Table):
    """A whole configuration, defaults included."""

    data: DataConfig
    model: ModelConfig
    classes: dict[str, ClassConfig]
    sample: SampleConfig = SampleConfig()
    attribute: AttributeConfig = AttributeConfig()
    segment: SegmentConfig = SegmentConfig()
    critic: CriticConfig
    align: AlignConfig = AlignConfig()
    run: RunConfig = RunConfig()

    def descriptions(self, classes: tuple[str, ...]) -> tuple[ClassDescription, ...]:
        """One description per class, in the data's order. Raises ConfigError if the names do not match."""
        return match_descriptions(
            {name: ClassDescription(name, words.description, words.irrelevant) for name, words in self.classes.items()}, classes
        )

    def to_toml(self) -> str:
        """The configuration as TOML, in a fixed order; reading it back gives an equal configuration."""
        return _to_toml(self.model_dump(by_alias=True, exclude_none=True))


def match_descriptions(described: dict[str, ClassDescription], classes: tuple[str, ...]) -> tuple[ClassDescription, ...]:
    """``described`` in the order of ``classes``. Raises ConfigError for a class without a description, or a description without a class."""
    missing = [name for name in classes if name not in described]
    if missing:
        spare = {name.casefold(): name for name in described if name not in classes}
        near = difflib.get_close_matches(missing[0].casefold(), spare, n=1)
        instead = f". There is [classes.{quote_key(spare[near[0]])}]: call it as the data do" if near else ""
        raise ConfigError(
            f"a class without a description: {_quoted(missing)}. "
            f"Add a table [classes.{quote_key(missing[0])}] with a description or an irrelevant{instead}"
        )
    unknown = [name for name in described if name not in classes]
    if unknown:
        raise ConfigError(f"a description for class {_quoted(unknown)}, which the data do not have; the classes are {_quoted(classes)}")
    return tuple(described[name] for name in classes)


def read_config(path: Path, defaults: dict[str, Any] | None = None) -> Config:
    """The configuration in a TOML file, over ``defaults`` (a built-in task brings its own model, classes and settings).

    Raises ConfigError naming the file, the key, the value and what was expected.
    """
    return parse_config(read_toml(path), source=str(path), defaults=defaults)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict. Raises ConfigError if there is no such file, or it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a folder, and a configuration was expected: `rightreasons init {path}` writes one for its images") from error
    except FileNotFoundError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: there is no such file. `rightreasons init FOLDER --out {path}` writes one for a folder of images"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def parse_config(tables: dict[str, Any], *, source: str, defaults: dict[str, Any] | None = None) -> Config:
    """``tables`` over ``defaults``, validated. Raises ConfigError naming every key that is wrong, or that waits to be filled in."""
    unfilled = _find_unfilled(tables)
    if unfilled:
        raise ConfigError("\n".join(f"{source}: {key} is not filled in yet: {waits}" for key, waits in unfilled.items()))
    try:
        return Config.model_validate(merge_tables(defaults or {}, tables))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {_explain(problem)}" for problem in error.errors())) from error


def _find_unfilled(tables: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """What a drafted configuration still waits for, by key."""
    found: dict[str, str] = {}
    for name, value in tables.items():
        key = f"{path}{quote_key(name)}"
        if isinstance(value, dict):
            found |= _find_unfilled(value, f"{key}.")
        elif isinstance(value, str) and value.startswith(UNFILLED):
            found[key] = f"write {value.removeprefix(UNFILLED).lstrip(': ') or 'something'}"
    return found


def parse_data(table: dict[str, Any], *, source: str) -> DataConfig:
    """The table [data] of a configuration alone, validated."""
    try:
        return DataConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {_explain({**problem, 'loc': ('data', *problem['loc'])})}" for problem in error.errors())) from error


def merge_tables(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, table by table."""
    merged = dict(below)
    for key, value in above.items():
        merged[key] = merge_tables(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return merged


def read_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """``["align.epochs=12"]`` as tables. A value is TOML, or a word that needs no quotation marks. Raises ConfigError for anything else."""
    tables: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or len(parts) < 2 or not all(parts):
            raise ConfigError(f"--set {text!r}: TABLE.KEY=VALUE was expected, such as --set align.epochs=12")
        try:
            parsed: Any = tomllib.loads(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value.strip()
        for part in reversed(parts):
            parsed = {part: parsed}
        tables = merge_tables(tables, parsed)
    return tables


def describe_difference(old: Config, new: Config, *, changeable: tuple[str, ...] = ()) -> str | None:
    """The keys on which two configurations differ, in words; None if they differ only in keys that start with one of ``changeable``."""
    before, after = (_flatten(config.model_dump(by_alias=True)) for config in (old, new))
    keys = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key) and not key.startswith(changeable)]
    told = [f"{key} was {before.get(key)!r} and is now {after.get(key)!r}" for key in keys[:MOST_DIFFERENCES]]
    more = len(keys) - len(told)
    return "; ".join([*told, *([f"and {more} more"] if more else [])]) or None


def _explain(problem: Any) -> str:  # noqa: ANN401 -- pydantic's ErrorDetails
    # The branches of a union ("int", "literal['auto']") come from pydantic and are not keys of the file; the name of a class is, whatever it is.
    branches = ("literal[", "constrained-", "function-")
    parts = [str(part) for part in problem["loc"]]
    keys = [part for i, part in enumerate(parts) if parts[:i] == ["classes"] or not (part in ("int", "float", "str") or part.startswith(branches))]
    key = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        valid = _valid_keys(keys[:-1])
        near = difflib.get_close_matches(keys[-1], valid, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key {key!r}; {hint}valid here: {', '.join(valid)}"
    if problem["type"] == "missing":
        return f"the key {key!r} is missing"
    return f"{key} = {problem['input']!r}: {problem['msg'].removeprefix('Value error, ').lower()}"


def _valid_keys(path: list[str]) -> list[str]:
    table: type[BaseModel] = Config
    for part in path:
        annotation = table.model_fields[part].annotation if part in table.model_fields else None
        table = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else ClassConfig
    return [field.alias or name for name, field in table.model_fields.items()]


def _flatten(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _to_toml(tables: dict[str, Any], prefix: str = "") -> str:
    # JSON's strings, numbers and booleans are TOML's as well.
    plain = "".join(f"{quote_key(key)} = {quote_value(value)}\n" for key, value in tables.items() if not isinstance(value, dict))
    head = f"[{prefix}]\n{plain}\n" if prefix and plain else plain
    return head + "".join(
        _to_toml(value, f"{prefix}.{quote_key(key)}" if prefix else quote_key(key)) for key, value in tables.items() if isinstance(value, dict)
    )


def quote_value(value: object) -> str:
    """A value as TOML wants it."""
    # TOML wants this one control character escaped, and JSON does not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def quote_key(name: str) -> str:
    """A key as TOML wants it, in quotation marks where it needs them."""
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() and name else quote_value(name)


def _quoted(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(repr(name) for name in names)
