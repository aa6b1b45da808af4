"""The formats of a model that is handed over. Each is written, loaded again, and compared with the model on images.

Whatever a network does that a format cannot express ends as a ``Written`` with the reason, and the other formats are made all the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from rightreasons.common.text import drop_folders
from rightreasons.errors import MissingExtra, ModelError
from rightreasons.networks.classifier import Classifier, copy_model, load_checkpoint, save_checkpoint

# Every format is tried on batches of these sizes, so that one whose batch axis got a fixed length is found out.
BATCHES = (1, 2, 5)
# The most that a format's logits may differ from the model's, as a share of the largest logit.
TOLERANCE = 1e-3
# Protocol buffers hold 2 GB; the weights of larger networks lie in a second file beside model.onnx.
LARGEST_ONNX = 1_500_000_000
# The most letters of an exporter's own error that are handed on.
LONGEST_REASON = 400
INPUT, OUTPUT = "images", "logits"

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Written:
    """One format: its ``file`` and what lies beside it, and how far its logits are from the model's; ``problem`` says why there is none.

    ``differences`` has the largest difference at each batch size, and ``largest_logit`` what that is to be seen against.
    """

    name: str
    file: str
    sha256: dict[str, str] = field(default_factory=dict)
    differences: dict[int, float] = field(default_factory=dict)
    largest_logit: float = 0.0
    problem: str | None = None

    @property
    def difference(self) -> float | None:
        """The largest difference of a logit at any batch size."""
        return max(self.differences.values(), default=None)


class Formats:
    """Writes one model, as ``model`` gives logits for ``images``, into ``folder``. The program that torch.export makes also becomes ONNX."""

    def __init__(self, model: Classifier, images: Float[Tensor, "image channel height width"], classes: Sequence[str], folder: Path) -> None:
        self.model, self.images, self.classes, self.folder = ready_model(model), images, classes, folder
        self._program: ExportedProgram | None = None

    def write(self, name: str) -> Written:
        """Writes and checks one of ``FORMATS``."""
        file, make = FORMATS[name]
        try:
            with _quiet():
                run = make(self, self.folder / file)
                differences, largest = self._compare(run)
        except Exception as error:  # exporters raise whatever they like at somebody's own network
            return Written(name, file, problem=_first_line(error))
        if max(differences.values()) > TOLERANCE * largest:
            told = ", ".join(f"{value:.2g} with {size}" for size, value in differences.items())
            return Written(name, file, problem=f"its logits differ from the model's by more than {TOLERANCE:g} of the largest: {told} images")
        made = sorted(path for path in self.folder.iterdir() if path.name.startswith(file))
        return Written(name, file, {path.name: _hash_file(path) for path in made}, differences, largest)

    def _compare(self, run: Run) -> tuple[dict[int, float], float]:
        """The largest difference of a logit for each batch size, and the largest logit; images come again where there are too few."""
        differences, largest, first = {}, 0.0, 0
        for size in BATCHES:
            batch = self.images[torch.arange(first, first + size) % len(self.images)]
            first += size
            with torch.no_grad():
                expected = self.model(batch)
            found = run(batch)
            if found.shape != expected.shape:
                raise ModelError(f"it gives {tuple(found.shape)} for {size} images, and {tuple(expected.shape)} was expected")
            if not found.isfinite().all():
                raise ModelError(f"it gives logits for {size} images that are not finite")
            differences[size] = (found - expected).abs().max().item()
            largest = max(largest, expected.abs().max().item())
        return differences, largest

    def _safetensors(self, path: Path) -> Run:
        save_checkpoint(self.model, path, self.classes)
        again = ready_model(self.model)
        for value in again.state_dict().values():
            value.zero_()
        load_checkpoint(again, path)
        return _without_gradients(again)

    def _torch(self, path: Path) -> Run:
        torch.export.save(self._export(), path)
        return _without_gradients(torch.export.load(path).module())

    def _onnx(self, path: Path) -> Run:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtra(package, "onnx")
        import onnxruntime

        external = sum(value.nbytes for value in self.model.state_dict().values()) > LARGEST_ONNX
        named = {"input_names": [INPUT], "output_names": [OUTPUT], "verbose": False, "external_data": external}
        try:
            torch.onnx.export(self._export(), (), path, dynamo=True, **named)
        except Exception:  # what torch.export cannot follow may still be traced, and the comparison decides whether the trace is right
            axes = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
            torch.onnx.export(self.model, (self._example(),), path, dynamo=False, dynamic_axes=axes, **named)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda batch: torch.from_numpy(session.run(None, {INPUT: batch.numpy()})[0])

    def _export(self) -> ExportedProgram:
        """The model as a program with a batch axis of any length, made once."""
        if self._program is None:
            program = torch.export.export(self.model, (self._example(),), dynamic_shapes=({0: Dim("batch", min=1)},))
            for module in program.graph_module.modules():
                for node in module.graph.nodes if isinstance(module, GraphModule) else ():
                    node.meta.pop("stack_trace", None)  # it names the folders of this machine, and the file is handed over
            self._program = program
        return self._program

    def _example(self) -> Tensor:
        # torch.export takes a batch of one for a constant.
        return self.images[torch.arange(2) % len(self.images)].clone()


# By the names that --formats takes: the file, and what writes it and gives it back as a function of images.
FORMATS: dict[str, tuple[str, Callable[[Formats, Path], Run]]] = {
    "safetensors": ("model.safetensors", Formats._safetensors),
    "torch": ("model.pt2", Formats._torch),
    "onnx": ("model.onnx", Formats._onnx),
}


def ready_model(model: Classifier) -> Classifier:
    """A copy on the CPU in eval mode, without gradients, in the order of axes that every machine has."""
    copied = copy_model(model).cpu().eval().requires_grad_(False)
    assert isinstance(copied, Classifier)  # as what was copied
    return copied.to(memory_format=torch.contiguous_format)


def _without_gradients(module: nn.Module) -> Run:
    def run(batch: Tensor) -> Tensor:
        with torch.no_grad():
            return module(batch)

    return run


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    """The error's own words, without the pages of advice that exporters add, and without the folders of this machine: the reason is handed over."""
    said = drop_folders(next(iter(str(error).strip().splitlines()), "no reason was given").strip())
    return said if isinstance(error, ModelError | MissingExtra) else f"{type(error).__name__}: {said[:LONGEST_REASON]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps exporters from printing and warning of their own affairs; what they refuse they raise."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
