"""Exports the model of a run: weights and programs, how to feed them, and a model card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from rightreasons.common.files import to_json
from rightreasons.common.seeds import seeded
from rightreasons.data.images import ImageFiles
from rightreasons.data.loading import some_images
from rightreasons.errors import ConfigError, ModelError
from rightreasons.networks.classifier import Classifier, as_classifier
from rightreasons.pipeline.fix import alignment_job
from rightreasons.pipeline.handover.card import write_card
from rightreasons.pipeline.handover.formats import BATCHES, FORMATS, INPUT, OUTPUT, Formats, Written
from rightreasons.run import Run

Which = Literal["aligned", "original", "rejected"]
PREPROCESSING, CARD = "preprocessing.json", "README.md"
# What the name of the folder begins with in which an export is made before it takes its place.
PART = ".export-"
# Which scores of metrics.json are those of which model.
SCORES: Mapping[Which, str] = {"aligned": "after", "original": "before", "rejected": "rejected"}


@dataclass(frozen=True)
class Export:
    """What was handed over: which model, its formats, and what should be known of the choice."""

    folder: Path
    which: Which
    written: tuple[Written, ...]
    remarks: tuple[str, ...]

    @property
    def failed(self) -> list[Written]:
        """The formats that could not be made."""
        return [format_ for format_ in self.written if format_.problem]


def export_model(run: Run, to: str | Path, *, which: Which = "aligned", formats: Sequence[str] = tuple(FORMATS)) -> Export:
    """Writes ``which`` model of a run into the folder ``to``: the formats, preprocessing.json and README.md, the model card.

    The folder has to be new, empty, or an earlier export, which is replaced. Raises ConfigError if the run has no such model or was not scored, and
    ModelError if no format could be made; a format that could not, beside others, is told in ``Export.failed``.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ConfigError(f"unknown format {', '.join(map(repr, unknown)) or '(none was named)'}: choose of {', '.join(FORMATS)}")
    metrics = run.folder.load_metrics()
    model, remarks = _choose(run, which, metrics)
    assert metrics is not None  # _choose refuses a run without
    folder = _check_folder(Path(to))
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{PART}*"):  # by an export that was stopped
        shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=PART, dir=folder))
    try:
        images = some_images(run.validation, sum(BATCHES), seeded(run.config.run.seed, "export")).images
        writer = Formats(model, images, run.project.task.classes, part)
        written = tuple(writer.write(name) for name in dict.fromkeys(formats))
        if all(format_.problem for format_ in written):
            raise ModelError(f"no format could be made of this model. {_tell_failed(written)}")
        (part / PREPROCESSING).write_text(to_json(describe_input(run, model, images.shape, written)) + "\n", encoding="utf-8")
        write_card(part / CARD, run, metrics, which=which, scores=SCORES[which], written=written, remarks=remarks)
        kept = {name for format_ in written for name in format_.sha256} | {PREPROCESSING, CARD}
        for old in [path for path in folder.iterdir() if path.name.startswith("model.")]:
            old.unlink()
        mode = (part / CARD).stat().st_mode  # as the user has new files; safetensors makes its own readable by their owner alone
        for name in sorted(kept):
            (part / name).chmod(mode)
            (part / name).replace(folder / name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Export(folder, which, written, remarks)


def _tell_failed(written: Sequence[Written]) -> str:
    return "; ".join(f"{format_.file}: {format_.problem}" for format_ in written if format_.problem)


def _choose(run: Run, which: Which, metrics: dict[str, Any] | None) -> tuple[Classifier, tuple[str, ...]]:
    """The model, and what should be known of the choice. Raises ConfigError, which says what there is instead."""
    path, stored = run.folder.path, run.folder.load_alignment()
    if metrics is None or metrics.get("before") is None:
        raise ConfigError(f"{path} has no scores, which the model card tells: run `rightreasons score {path}` first")
    if which == "original":
        return as_classifier(run.model), ("This is the model as it was before the repair.",)
    if which == "rejected":
        if run.rejected is None or metrics.get("rejected") is None:
            raise ConfigError(f"{path} has no rejected repair: leave out --model, or give --model original")
        reason = f": {stored['reason']}" if stored and stored.get("reason") else ""
        return as_classifier(run.rejected), (f"The harm guard rejected this repair{reason}. It is exported because that was asked for.",)
    if stored is None or run.aligned is None:
        raise ConfigError(f"{path} was not repaired yet: run `rightreasons fix {path}`, or give --model original to hand over the model as it was")
    if stored["outcome"] == "original kept":
        raise ConfigError(
            f"the harm guard rejected the repair of {path} ({stored['reason']}), so that there is no aligned model: give --model original for the "
            "model as it was, or --model rejected for the repair, which its model card will tell"
        )
    if metrics.get("after") is None:
        raise ConfigError(f"{path} has no scores of the aligned model, which the model card tells: run `rightreasons score {path}` first")
    remarks = []
    if stored["outcome"] == "nothing to change":
        remarks.append("Nothing was to be repaired, so that these are the original model's weights.")
    if stored["outcome"] == "accepted":
        remarks.append(f"The harm guard rejected this repair, and a person accepted it all the same. The guard's reason: {stored['reason']}.")
    if (metrics.get("alignment") or {}).get("effect") == "did not take":
        remarks.append(
            f"The repair did not take: pasting what was judged spurious in still changes {100 * metrics['after']['swap_flip_rate']:.1f} % of the "
            f"answers, and it was {100 * metrics['before']['swap_flip_rate']:.1f} % before."
        )
    if run.folder.load_alignment(alignment_job(run)) is None:
        remarks.append("Verdicts or settings have changed since this model was repaired.")
    return as_classifier(run.aligned), tuple(remarks)


def _check_folder(folder: Path) -> Path:
    """Raises ConfigError for a folder with somebody's own files, which would be mixed up with the export's."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--to {folder} is a file, and a folder was expected: name another")
    there = [path for path in folder.iterdir() if not path.name.startswith(PART)] if folder.is_dir() else []
    if there and not (folder / PREPROCESSING).exists():
        raise ConfigError(f"{folder} is not empty and not an earlier export (it has no {PREPROCESSING}): name a new folder with --to")
    return folder


def describe_input(run: Run, model: Classifier, shape: Sequence[int], written: Sequence[Written]) -> dict[str, Any]:
    """preprocessing.json: how a file of an image becomes the input, and what the outputs stand for."""
    _, channels, height, width = shape
    preset, reading = model.preset, getattr(run.train, "reading", None) if isinstance(run.train, ImageFiles) else None
    resize = {"height": height, "width": width, "filter": "bilinear", "antialias": True, "keep_aspect_ratio": False, "library": "Pillow"}
    made = [format_ for format_ in written if not format_.problem]
    programs = [format_.file for format_ in made if format_.name != "safetensors"]
    return {
        "input": {
            "name": INPUT,
            "type": "float32",
            "layout": ["batch", "channel", "height", "width"],
            "shape": [None, channels, height, width],
            "channels": ["red", "green", "blue"] if channels == 3 else ["grey"] if channels == 1 else None,
            "range": [0.0, 1.0],
        },
        # What a dataset in memory did to its images before, nobody here knows.
        "read": None if reading is None else {"orientation": "by EXIF", "transparency": "on white"},
        "resize": None if reading is None else resize if reading.resize else {"height": height, "width": width, "filter": None},
        "window": _tell_window(run),
        "normalise": {
            "mean": list(preset.mean),
            "std": list(preset.std),
            "channel_order": list(preset.channels) or list(range(len(preset.mean) or channels)),
            "repeat_grey": channels == 1 and max(len(preset.mean), len(preset.channels)) > 1,
            "done_inside": programs,
            "to_be_done_before": [format_.file for format_ in made if format_.name == "safetensors"],
        },
        "output": {
            "name": OUTPUT,
            "classes": list(run.project.task.classes),
            "order_inside_network": list(model.order) if model.order and model.moves_outputs else None,
        },
        "network": ":".join(PurePath(part).name for part in run.config.model.source.split(":")),
        "files": {
            format_.file: {
                "sha256": format_.sha256,
                "largest_difference": format_.difference,
                "largest_logit": format_.largest_logit,
                "differences_by_batch_size": {str(size): value for size, value in format_.differences.items()},
            }
            for format_ in made
        },
        "not_made": {format_.file: format_.problem for format_ in written if format_.problem},
    }


def _tell_window(run: Run) -> dict[str, Any] | None:
    """What is black and white in images of more than 8 bits, as stated or by kind; None for images of 8 bits."""
    if run.config.data.window is not None:
        return {"all": list(run.config.data.window)}
    return {kind: list(pair) for kind, pair in run.project.task.windows.items()} or None
