"""A run folder with every stage's result. Files are written atomically; a stage whose file exists is loaded, not recomputed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rightreasons.common.device import best_device
from rightreasons.common.files import make_private_folder, to_json, write_atomically, write_text
from rightreasons.config import Config, describe_difference, read_config
from rightreasons.data.manifest import Listed, compare_manifests, find_changed, list_hashes
from rightreasons.errors import ConfigError
from rightreasons.records import (
    HUMAN,
    Attribution,
    Control,
    Criticism,
    Critique,
    HeldOut,
    Outcome,
    Segmentation,
    Selection,
    Verdict,
)
from rightreasons.runs.appended import append_lines, now, people_held
from rightreasons.runs.verdict_lines import append_verdicts, read_history, read_verdicts, write_line

# Settings that may change in a run folder: NEVER_USED at any time, since no stage up to the first verdicts uses them or they change no answer, and
# USED_BY_CRITIC before there are verdicts. The paths of data and checkpoint may change, because the images and weights themselves are compared.
# Close-ups and agreement come after the first verdicts, whose answers are in the ledger: with or without them, the same command goes on from there.
NEVER_USED = (
    "align.",
    "critic.agreement",
    "critic.close_up",
    "critic.timeout",
    "critic.max_usd",
    "critic.prices",
    "data.path",
    "model.checkpoint",
    "run.log",
)
USED_BY_CRITIC = ("critic.", "classes.")

_OUTCOMES: tuple[Outcome, ...] = ("segmented", "no-positive-effect", "constant", "not-finite")


class RunFolder:
    """The files of one run, by stage. A ``load_*`` method returns None, or something empty, if the stage has not finished yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def pictures(self) -> Path:
        """The folder of the pictures that the critic saw, as PNG files."""
        return self.path / "pictures"

    @property
    def trained_model(self) -> Path:
        """The file of weights that the run itself has trained."""
        return self.path / "model.safetensors"

    @property
    def ledger(self) -> Path:
        """The file of the ledger, with every attempt at an LVLM request."""
        return self.path / "lvlm.sqlite"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder. Raises ConfigError if another process is working on it."""
        (self.path / ".lock").touch(mode=0o600)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(f"another process is working on {self.path}: wait for it, or choose another --out") from error
            yield

    def start(self, config: Config, *, manifest: str, root: Path, splits: Mapping[str, Dataset]) -> None:
        """Makes the folder, or continues in one that was made for the same run. ``manifest`` identifies data and model.

        Settings that no finished stage has used may differ in ``config``, and are stored. Raises ConfigError if any other setting differs, if the
        images, by number, or the weights have changed, or if the folder belongs to something else.
        """
        if not (self.path / "config.toml").exists():
            # A kill while the folder was being made leaves at most environment.json and hidden files.
            foreign = (
                [path for path in self.path.iterdir() if path.name != "environment.json" and not path.name.startswith(".")]
                if self.path.is_dir()
                else []
            )
            if foreign:
                raise ConfigError(f"{self.path} is not empty and not a run folder: choose another --out")
            make_private_folder(self.path, "run folder")
            environment = {
                "rightreasons": version("rightreasons"),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "device": str(best_device()),
                "seed": config.run.seed,
                "made": now(),
                "data": manifest,
                **self._place(root),
            }
            write_text(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")
            write_text(self.path / "config.toml", config.to_toml())
            return
        stored = self.config()
        changeable = NEVER_USED + (() if (self.path / "verdicts.jsonl").exists() else USED_BY_CRITIC)
        difference = describe_difference(stored, config, changeable=changeable)
        if difference:
            raise ConfigError(
                f"{self.path} was made with another configuration: {difference}, and find has used that setting. Choose another --out, or delete "
                f"that folder"
            )
        self._check_same(manifest, splits)
        environment = self.environment()
        if environment != (updated := environment | {"data": manifest, **self._place(root)}):
            write_text(self.path / "environment.json", json.dumps(updated, indent=2) + "\n")
        if stored != config:
            write_text(self.path / "config.toml", config.to_toml())

    def _place(self, root: Path) -> dict[str, str]:
        """The folder that the configuration's paths are relative to, absolute and relative to the run, which may be moved together with it."""
        return {"root": str(root.resolve()), "root_from_here": os.path.relpath(root.resolve(), self.path.resolve())}

    def root(self) -> Path:
        """The folder that the configuration's paths are relative to, also after it was moved together with the run."""
        environment = self.environment()
        moved = self.path / environment.get("root_from_here", "")
        return Path(environment["root"]) if Path(environment["root"]).exists() or not moved.exists() else moved.resolve()

    def _check_same(self, manifest: str, splits: Mapping[str, Dataset]) -> None:
        """Raises ConfigError if the data or the checkpoint are not those that the folder was made from."""
        (data, _, weights), (data_now, _, weights_now) = (text.partition(", model ") for text in (self.environment()["data"], manifest))
        again = "Restore the old ones, or choose another --out for a new run"
        if weights != weights_now:
            raise ConfigError(f"the checkpoint has other weights than the ones that {self.path} was made from. {again}")
        listed, selection = self.load_manifest(), self.load_selection()
        if data != data_now:
            # The data may be a copy with the same images, so the images are compared.
            changed = "it has no list of them" if listed is None else compare_manifests(listed, list_hashes(splits, lambda done, total: None))
            if changed:
                raise ConfigError(f"the images are not those that {self.path} was made from ({changed}). {again}")
        if listed is not None and selection is not None:
            changed = find_changed(splits["train"], "train", listed, selection.indices.tolist())
            if changed:
                shown = ", ".join(map(str, changed[:5])) + (", ..." if len(changed) > 5 else "")
                raise ConfigError(
                    f"{len(changed)} of the inspected images have changed since {self.path} was made (training images {shown}). {again}"
                )

    def environment(self) -> dict[str, Any]:
        """environment.json: versions, device, seed, the data's identity, and the folder that the configuration's paths are relative to."""
        return json.loads((self.path / "environment.json").read_text(encoding="utf-8"))

    def config(self) -> Config:
        """The resolved configuration. Raises ConfigError if this is not a run folder."""
        if not (self.path / "config.toml").exists():
            raise ConfigError(f"{self.path} is not a run folder (it has no config.toml): make one with `rightreasons find CONFIG --out {self.path}`")
        return read_config(self.path / "config.toml")

    def save_manifest(self, listed: Iterable[Listed]) -> None:
        """manifest.jsonl, one line an image."""
        write_text(self.path / "manifest.jsonl", "".join(json.dumps(vars(line)) + "\n" for line in listed))

    def load_manifest(self) -> list[Listed] | None:
        """manifest.jsonl, read back."""
        lines = self._read_lines("manifest.jsonl")
        return None if lines is None else [Listed(**line) for line in lines]

    def save_unreadable(self, unreadable: Mapping[str, list[int]]) -> None:
        """unreadable.json: the images of each split that could not be decoded, by their number."""
        write_text(self.path / "unreadable.json", json.dumps(unreadable) + "\n")

    def load_unreadable(self) -> dict[str, list[int]]:
        """unreadable.json, read back; none before anything was saved."""
        return self._read_json("unreadable.json") or {}

    def save_answers(self, counts: Mapping[str, Tensor], problems: list[str]) -> None:
        """answers.json: how often images of each class got each answer, by split, as [class, answer, count]; and what is wrong with them."""
        tables = {
            split: {"classes": len(table), "counts": [[*place, int(table[tuple(place)])] for place in table.nonzero().tolist()]}
            for split, table in counts.items()
        }
        write_text(self.path / "answers.json", json.dumps({"splits": tables, "problems": problems}) + "\n")

    def load_answers(self) -> tuple[dict[str, Tensor], list[str]]:
        """answers.json, read back; empty for a run from before this file was written."""
        stored = self._read_json("answers.json")
        if stored is None:
            return {}, []
        counts = {}
        for split, table in stored["splits"].items():
            counts[split] = torch.zeros(table["classes"], table["classes"], dtype=torch.int64)
            for row, column, count in table["counts"]:
                counts[split][row, column] = count
        return counts, stored["problems"]

    def save_selection(self, selection: Selection) -> None:
        """selection.json."""
        columns = {"indices": selection.indices, "labels": selection.labels, "entropy": selection.entropy}
        write_text(
            self.path / "selection.json", json.dumps({"strategy": selection.strategy} | {key: value.tolist() for key, value in columns.items()})
        )

    def load_selection(self) -> Selection | None:
        """selection.json, read back."""
        stored = self._read_json("selection.json")
        if stored is None:
            return None
        return Selection(stored["strategy"], torch.tensor(stored["indices"]), torch.tensor(stored["labels"]), torch.tensor(stored["entropy"]))

    def save_attribution(self, attribution: Attribution, name: str = "heatmaps") -> None:
        """heatmaps.safetensors."""
        self._save_tensors(name, vars(attribution))

    def load_attribution(self, name: str = "heatmaps") -> Attribution | None:
        """heatmaps.safetensors, read back."""
        tensors = self._load_tensors(name)
        return None if tensors is None else Attribution(**tensors)

    def save_attribution_part(self, part: Attribution, first: int) -> None:
        """Saves the heatmaps of some images, from row ``first`` on, while the others are still computed."""
        self.save_attribution(part, f"heatmaps-part-{first:06d}")

    def load_attribution_parts(self) -> list[Attribution]:
        """The parts that ``save_attribution_part`` has saved, in order."""
        parts = (self.load_attribution(path.stem) for path in sorted(self.path.glob("heatmaps-part-*.safetensors")))
        return [part for part in parts if part is not None]

    def drop_attribution_parts(self) -> None:
        """Removes the parts once heatmaps.safetensors has all of them."""
        for path in self.path.glob("heatmaps-part-*.safetensors"):
            path.unlink()

    def save_segmentation(self, segmentation: Segmentation) -> None:
        """segments.safetensors."""
        outcomes = torch.tensor([_OUTCOMES.index(outcome) for outcome in segmentation.outcomes], dtype=torch.uint8)
        tensors = {
            "segments": segmentation.segments,
            "effect": segmentation.effect,
            "shares": segmentation.shares,
            "outcomes": outcomes,
        }
        self._save_tensors("segments", tensors)

    def load_segmentation(self) -> Segmentation | None:
        """segments.safetensors, read back."""
        tensors = self._load_tensors("segments")
        if tensors is None:
            return None
        outcomes = tuple(_OUTCOMES[code] for code in tensors["outcomes"].tolist())
        return Segmentation(tensors["segments"], tensors["effect"], tensors["shares"], outcomes)

    def save_critiques(self, critiques: list[Critique]) -> None:
        """critiques.jsonl, one line for each image and vote. Those of images that were judged again are kept, after the new ones."""
        with people_held(self.path):
            again = [line for line in self._read_lines("critiques.jsonl") or [] if line.get("at") is not None]
            lines = [*map(_write_critique, critiques), *again]
            write_text(self.path / "critiques.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def add_critiques(self, critiques: list[Critique]) -> None:
        """Appends critiques of images that were judged again."""
        append_lines(self.path / "critiques.jsonl", [_write_critique(critique) for critique in critiques])

    def load_critiques(self) -> list[Critique] | None:
        """The critiques in critiques.jsonl that count: of an image that was judged again, those of the last time, and of each of its close-ups the
        last one since then.
        """
        lines = self._read_lines("critiques.jsonl")
        if lines is None:
            return None
        whole: dict[int, list[Critique]] = {}
        near: dict[int, dict[int, Critique]] = {}
        for critique in (Critique(**line) for line in lines):
            if critique.segment is not None:
                near.setdefault(critique.index, {})[critique.segment] = critique
                continue
            before = whole.pop(critique.index, [])
            votes = before if before and before[-1].at == critique.at else []
            if not votes:
                near.pop(critique.index, None)
            whole[critique.index] = [*votes, critique]  # what was judged again stands last
        return [critique for index, votes in whole.items() for critique in (*votes, *near.get(index, {}).values())]

    def save_controls(self, controls: list[Control]) -> None:
        """controls.jsonl, one line for each control."""
        write_text(self.path / "controls.jsonl", "".join(json.dumps(asdict(control), ensure_ascii=False) + "\n" for control in controls))

    def load_controls(self) -> list[Control]:
        """controls.jsonl, read back; empty for a run from before controls existed."""
        return [Control(**line) for line in self._read_lines("controls.jsonl") or []]

    def save_verdicts(self, verdicts: list[Verdict]) -> None:
        """verdicts.jsonl, one line for each segment. What was added after ``find``, by people and by judging again, is kept after the new ones."""
        with people_held(self.path):
            added = [verdict for verdict in self.load_history() if verdict.source == HUMAN or verdict.at is not None]
            lines = [write_line(verdict) for verdict in [*verdicts, *added]]
            write_text(self.path / "verdicts.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def load_verdicts(self) -> list[Verdict] | None:
        """The verdicts in verdicts.jsonl that stand, in the order in which they were given.

        Raises ConfigError naming a line that does not belong to this run.
        """
        path = self.path / "verdicts.jsonl"
        return read_verdicts(path, self.segment_counts()) if path.exists() else None

    def load_history(self) -> list[Verdict]:
        """Every line of verdicts.jsonl, verdicts that were taken back among them; none before there are verdicts."""
        path = self.path / "verdicts.jsonl"
        return read_history(path, self.segment_counts()) if path.exists() else []

    def add_verdicts(self, verdicts: list[Verdict]) -> None:
        """Appends verdicts; they are on the disk when this returns. Other processes may add verdicts, fine-tune or read at the same time."""
        append_verdicts(self.path / "verdicts.jsonl", verdicts)

    def image_size(self) -> tuple[int, int]:
        """Height and width of heatmaps, segments and masks, in pixels."""
        with safetensors.safe_open(self.path / "segments.safetensors", "pt") as tensors:
            _, height, width = tensors.get_slice("segments").get_shape()
        return height, width

    def segment_counts(self) -> dict[int, int] | None:
        """How many segments each inspected image has, by its number; None before they are cut."""
        selection, path = self._read_json("selection.json"), self.path / "segments.safetensors"
        if selection is None or not path.exists():
            return None
        with safetensors.safe_open(path, "pt") as tensors:
            counts = (tensors.get_tensor("shares") > 0).sum(1)
        return dict(zip(selection["indices"], counts.tolist(), strict=True))

    def save_criticism(self, criticism: Criticism) -> None:
        """criticism.json: the critic and the judge, the cost, and the hash of the weights that were explained."""
        write_text(self.path / "criticism.json", to_json(asdict(criticism)) + "\n")

    def load_criticism(self) -> Criticism | None:
        """criticism.json, read back."""
        stored = self._read_json("criticism.json")
        return None if stored is None else Criticism(**stored)

    def save_scores(self, key: str, scores: Mapping[str, Any]) -> None:
        """scores.json: scores by a key of everything that they depend on."""
        write_text(self.path / "scores.json", to_json((self._read_json("scores.json") or {}) | {key: scores}) + "\n")

    def load_scores(self, key: str) -> dict[str, Any] | None:
        """The scores of the same weights, data and verdicts; None if there are none yet."""
        return (self._read_json("scores.json") or {}).get(key)

    def save_masks(self, masks: Tensor) -> None:
        """masks.safetensors."""
        self._save_tensors("masks", {"masks": masks})

    def save_alignment(self, job: str, result: dict[str, Any], settings: dict[str, Any], held_out: tuple[HeldOut, HeldOut] | None = None) -> None:
        """alignment.json: the result of fine-tuning, its verdicts and settings, and the harm guard's measurements before and after."""
        measured = None if held_out is None else [asdict(model) for model in held_out]
        stored = {"job": job, "result": result, "settings": settings, "held_out": measured}
        write_text(self.path / "alignment.json", json.dumps(stored, indent=2, allow_nan=False) + "\n")

    def load_alignment(self, job: str | None = None) -> dict[str, Any] | None:
        """The result in alignment.json, read back; if a ``job`` is given, only the result of that job."""
        stored = self._read_json("alignment.json")
        return stored["result"] if stored is not None and job in (None, stored["job"]) else None

    def load_held_out(self) -> tuple[HeldOut, HeldOut] | None:
        """The harm guard's measurements, read back; None if it had nothing to judge."""
        measured = (self._read_json("alignment.json") or {}).get("held_out")
        if measured is None:
            return None
        before, after = (HeldOut(model["accuracy"], model["neutral"], tuple(model["answers"])) for model in measured)
        return before, after

    def load_metrics(self) -> dict[str, Any] | None:
        """metrics.json, read back."""
        return self._read_json("metrics.json")

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """metrics.json. Raises ModelError for a number that is not finite."""
        write_text(self.path / "metrics.json", to_json(metrics) + "\n")

    def _save_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_atomically(self.path / f"{name}.safetensors", lambda part: safetensors.torch.save_file(contiguous, part))

    def _load_tensors(self, name: str) -> dict[str, Tensor] | None:
        path = self.path / f"{name}.safetensors"
        return safetensors.torch.load_file(path) if path.exists() else None

    def _read_json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def _read_lines(self, name: str) -> list[dict[str, Any]] | None:
        path = self.path / name
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()] if path.exists() else None


def _write_critique(critique: Critique) -> dict[str, Any]:
    """A critique as its line has it; only one that was asked for again says by whom and when, and only one on a close-up of which segment."""
    return {key: value for key, value in asdict(critique).items() if value is not None or key not in ("by", "at", "segment")}
