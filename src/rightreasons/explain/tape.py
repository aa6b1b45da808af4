"""What the rescale rule keeps of the baselines: the nonlinearities in the order of their calls, and what each rule needs of their inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor, nn

from rightreasons.errors import UnsupportedLayer

ALTERNATIVE = 'Use [attribute] method = "integrated-gradients", which every differentiable model allows'


class NotRowByRow(UnsupportedLayer):
    """A tensor whose first axis is not the batch: what belongs to which image cannot be told from its place."""


class Kept:
    """A tensor that a rule needs later. It is not a copy, unless a later call of the model writes into it (``Tape.protect``)."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


@dataclass(frozen=True)
class Call:
    """One call of a nonlinearity: the shapes of what its rule keeps for one image, and what it keeps for each recorded batch of baselines."""

    name: str
    forms: list[tuple[int, ...]]
    tape: Tape
    batches: list[tuple[Kept, ...]] = field(default_factory=list)

    def current(self) -> tuple[Tensor, ...]:
        """What was kept for the tape's current baseline, in a form that broadcasts to the images' own."""
        if self.tape.paired:
            return tuple(kept.tensor for kept in self.batches[0])
        index, batch = self.tape.baseline, 0
        while index >= self.tape.recorded[batch]:
            index, batch = index - self.tape.recorded[batch], batch + 1
        chosen = []
        for kept in self.batches[batch]:
            parts = len(kept.tensor) // self.tape.recorded[batch]  # 1, or the windows of an image, folded into the batch
            part = kept.tensor[index * parts : (index + 1) * parts]
            chosen.append(part if parts == 1 else part.repeat(self.tape.rows, *[1] * (part.ndim - 1)))
        return tuple(chosen)


@dataclass(frozen=True)
class Visit:
    """A call that the model makes now, and what its rule keeps of it."""

    call: Call
    kept: tuple[Kept, ...]

    def own(self) -> tuple[Tensor, ...]:
        """What was kept of this call."""
        return tuple(kept.tensor for kept in self.kept)

    def current(self) -> tuple[Tensor, ...]:
        """The same of the same call for the current baseline."""
        return self.call.current()


@dataclass
class Tape:
    """The nonlinearities in the order in which the model calls them; ``baseline`` is the index of the baseline that a backward pass compares with.

    The first axis of every tensor must have one part for each of the ``rows`` that run at a time. A ``paired`` tape has one baseline for each
    image, so that their tensors have the same form, whatever it is, and a backward pass compares them place by place. ``method`` is named in errors.
    """

    paired: bool = False
    method: str = "DeepLIFT SHAP"
    rows: int = 0
    recording: bool = False
    recorded: list[int] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    position: int = 0
    baseline: int = 0
    saved_bytes: int = 0
    network: nn.Module | None = None
    alive: dict[int, list[Kept]] = field(default_factory=dict)

    @contextmanager
    def running(self, network: nn.Module, rows: int, *, recording: bool) -> Iterator[None]:
        """Follows a forward pass of ``rows`` images, or of baselines to record. Raises UnsupportedLayer if it ends before all calls were made."""
        self.network, self.rows, self.recording, self.position = network, rows, recording, 0
        if recording:
            self.recorded.append(rows)
        try:
            yield
        finally:
            self.alive = {}
        if self.position != len(self.calls):
            raise UnsupportedLayer(
                f"the model calls {len(self.calls)} nonlinearities for the baselines and {self.position} for the images; "
                f"DeepLIFT SHAP needs a model whose path does not depend on its input. {ALTERNATIVE}"
            )

    @property
    def kept_bytes(self) -> int:
        """The bytes of the tensors that the tape keeps; calls may share one."""
        return sum({kept.tensor.data_ptr(): kept.tensor.nbytes for call in self.calls for batch in call.batches for kept in batch}.values())

    @property
    def folds(self) -> bool:
        """Whether a kept tensor has several parts for each image."""
        return any(form[0] > 1 for call in self.calls for form in call.forms)

    def visit(self, name: str, *needed: Tensor) -> Visit:
        """The call's entry, which must be the one that the first batch made here; ``needed`` is what its rule will need."""
        if not self.paired:
            self._check_rows(name, needed)
        forms = [self._form(tensor) for tensor in needed]
        if self.recording and len(self.recorded) == 1:
            self.calls.append(Call(name, forms, self))
        call = self.calls[self.position] if self.position < len(self.calls) else None
        if call is None or call.name != name or call.forms != forms:
            raise UnsupportedLayer(
                f"the model calls other functions for the images than for the baselines (at call {self.position}, {name}, by {self.here}); "
                f"DeepLIFT SHAP needs a model whose path does not depend on its input. {ALTERNATIVE}"
            )
        self.position += 1
        kept = tuple(self.keep(tensor) for tensor in needed)
        if self.recording:
            call.batches.append(kept)
        return Visit(call, kept)

    def protect(self, written: Tensor) -> None:
        """Copies what was kept in the memory of a tensor, before a call writes into it."""
        for kept in self.alive.pop(written.untyped_storage().data_ptr(), ()):
            kept.tensor = kept.tensor.clone()

    def keep(self, tensor: Tensor) -> Kept:
        """The tensor as it is now, whatever the model writes into its memory later."""
        kept = Kept(tensor)
        self.alive.setdefault(tensor.untyped_storage().data_ptr(), []).append(kept)
        return kept

    def _form(self, tensor: Tensor) -> tuple[int, ...]:
        """A tensor's shape for one image."""
        return tuple(tensor.shape) if self.paired else (len(tensor) // self.rows, *tensor.shape[1:])

    def _check_rows(self, name: str, tensors: tuple[Tensor, ...]) -> None:
        for tensor in tensors:
            if not tensor.shape or len(tensor) % self.rows:
                raise NotRowByRow(f"{self.here} calls {name} on a tensor of shape {tuple(tensor.shape)} for {self.rows} images. {ALTERNATIVE}")

    def check_order(self) -> None:
        """Raises NotRowByRow if two equal baselines left something unequal in the two halves of a call: its first axis is not image by image."""
        for call in self.calls:
            for kept in call.batches[0]:
                first, second = kept.tensor.chunk(2)
                if not torch.allclose(first, second, atol=1e-5 * float(kept.tensor.abs().max()), rtol=1e-3, equal_nan=True):
                    raise NotRowByRow(f"the first axis of the input of {call.name} is not the batch. {ALTERNATIVE}")

    def refuse(self, name: str) -> NoReturn:
        """Raises UnsupportedLayer for the function ``name``."""
        raise UnsupportedLayer(f"{self.method} does not cover {name!r}, which {self.here} calls on the way from image to logits. {ALTERNATIVE}")

    @property
    def here(self) -> str:
        """The name of the innermost module of the network that is running, by Python's stack: only an error asks, so that no call has to be noted."""
        names = {} if self.network is None else {id(module): name for name, module in self.network.named_modules()}
        frame = inspect.currentframe()
        while frame is not None and id(frame.f_locals.get("self")) not in names:
            frame = frame.f_back
        return (names[id(frame.f_locals["self"])] if frame is not None else "") or "the model itself"
