"""Several processes of ``torchrun`` at work on one run, started through Hugging Face Accelerate (docs/scale.md).

The main process runs the command. The others are its helpers: they open the same data and network and then do what they are asked (``serve``), so
that only the main process knows the run folder, the vision-language model and the terminal. There are two ways to ask them:

- ``map_shared`` and ``map_batches``: each item is worked on by one process, and the main process gets the results in order;
- ``helped_by`` and ``step_together``: all walk through an epoch in step. Each process computes its rows of a batch (``by_rows``), all of them get
  the whole result, and gradients are added up (``add_up_gradients``).

Without ``torchrun`` every function here works in one process as if it were not there.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] -- its documented place
from torch.utils.data import Dataset

from rightreasons.common.device import DEVICE
from rightreasons.data.loading import Batch, count_images, fitting_size, none_readable, read_batches, read_parts
from rightreasons.errors import ConfigError, MissingExtra, ProcessLost
from rightreasons.networks.classifier import Classifier, copy_model

T = TypeVar("T")
Item = TypeVar("Item")

# Helpers wait while the main process asks a vision-language model. A process that ends is noticed by its closed connection and by torchrun, so that
# nothing depends on this time.
LONGEST_WAIT = timedelta(days=365)
# Seconds in which the process that tells of an error does so before torchrun ends it, which it does as soon as another one ends.
GRACE = 1.0


@dataclass
class _Team:
    """One process among the others.

    ``opened`` is what every process opened for itself, by name; it is None before ``serve``. ``busy`` says that work is shared at the moment, and
    stays so after an error in it.
    """

    rank: int
    size: int
    control: dist.ProcessGroup
    store: TCPStore
    opened: Mapping[str, object] | None = None
    busy: bool = False
    in_step: bool = False


_team: _Team | None = None


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that torchrun started, for the time of a command; at its end helpers that wait are dismissed.

    Raises MissingExtra without Accelerate, and ConfigError for a device that the processes cannot share.
    """
    global _team
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingExtra("accelerate", "distributed") from error
    state = PartialState(cpu=_choose_device() == "cpu", timeout=LONGEST_WAIT)
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False)
    # Words go through gloo, also between GPUs: a GPU that waits for another one is busy.
    control = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    assert isinstance(control, dist.ProcessGroup)  # every process is in it
    _team = _Team(state.process_index, state.num_processes, control, store)
    try:
        yield
    finally:
        if not _team.busy:
            if _team.rank == 0 and _team.opened is not None:
                with suppress(ProcessLost):  # the command has ended, so that a helper that is gone is not missed
                    _tell(None)
            dist.destroy_process_group()
        _team = None


def _choose_device() -> str:
    """Every process has the GPU of its own number on its machine, or all use the CPU."""
    name = os.environ.setdefault(DEVICE, "cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cuda", "cpu"):
        raise ConfigError(f"the processes of torchrun cannot share the device {name!r}: give --device cuda, a GPU for each of them, or --device cpu")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if name == "cuda" and here > torch.cuda.device_count():
        raise ConfigError(f"{here} processes on a machine with {torch.cuda.device_count()} GPUs: give torchrun a lower --nproc-per-node")
    return name


def word_error(error: Exception) -> str | None:
    """The error in words, if this process is the one that tells; None if another one does, which then has had the time for it."""
    if _team is None:  # joining failed, and so it did on the others
        return str(error) if os.environ.get("LOCAL_RANK") == "0" else None
    if _team.rank > 0:
        time.sleep(GRACE)  # what fails everywhere, the main process tells
    try:
        first = _team.store.add(f"rightreasons-told-{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1
    except RuntimeError:  # the store has ended, and whoever ended it tells
        first = _team.rank == 0
    if not first:
        time.sleep(GRACE)
        return None
    return f"process {_team.rank} of {_team.size} on {socket.gethostname()}: {error}" if _team.rank > 0 else str(error)


def serve(opened: Mapping[str, object], identity: str) -> bool:
    """True in a helper, which by then has done what it was asked and is dismissed; False in the main process, which has helpers from now on.

    ``opened`` are the objects that every process opened for itself, "model" among them: they are named and not sent. ``identity`` says what they
    are. Raises ConfigError if that is something else than in the main process.
    """
    assert _team is not None  # the command has joined
    _team.opened = opened
    if _team.rank == 0:
        _tell(identity)
        return False
    if (wanted := _hear()) != identity:
        raise ConfigError(f"this process opens other data or weights ({identity}) than the main one ({wanted}): every machine needs the same files")
    while (asked := _hear()) is not None:
        function, arguments = asked
        _team.busy = True
        function(*arguments)
        _team.busy = False
    return True


def processes() -> int:
    """How many processes share the work; 1 in one that works alone."""
    return 1 if _team is None or _team.opened is None else _team.size


@contextmanager
def helped_by(function: Callable[..., object], *arguments: object) -> Iterator[None]:
    """While the block runs, every helper calls ``function``, which has to be one of a module. Nothing happens in a process that works alone.

    What ``serve`` was given arrives as the helper's own, a ``Classifier`` as a copy of the helper's with the weights of this one.
    """
    if processes() == 1:
        yield
        return
    assert _team is not None
    _tell((function, arguments))
    _team.busy = True
    yield
    _team.busy = False


def map_shared(
    function: Callable[[Iterable[Item]], Iterator[T]], items: Sequence[Item], *, here: Callable[[Iterable[Item]], Iterator[T]] | None = None
) -> Iterator[T]:
    """The results of ``function``, which gives one for each item, in order. Items are dealt out to the processes in turns.

    ``here`` is what the main process calls instead, with what helpers cannot have, such as progress.
    """
    here, size = here or function, processes()
    if size == 1:
        yield from here(items)
        return
    with helped_by(_send_results, function, items):
        own = here(items[::size])
        for number in range(len(items)):
            yield _receive(number % size) if number % size else next(own)


def _send_results(function: Callable[[Iterable[Item]], Iterator[T]], items: Sequence[Item]) -> None:
    assert _team is not None
    for result in function(items[_team.rank :: _team.size]):
        packed = _pack(result)
        with _linked():
            dist.send(torch.tensor([len(packed)]), 0, group=_team.control)
            dist.send(packed, 0, group=_team.control)


def _receive(rank: int) -> Any:  # noqa: ANN401 -- whatever a function gives
    assert _team is not None
    size = torch.empty(1, dtype=torch.int64)
    with _linked():
        dist.recv(size, rank, group=_team.control)
        packed = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(packed, rank, group=_team.control)
    return pickle.loads(packed.numpy().data)


def map_batches(function: Callable[[Batch], T], dataset: Dataset, batch_size: int | None = None) -> Iterator[T]:
    """``function`` of every batch that ``read_batches`` gives of a dataset, in order; each batch is read and worked on by one process.

    Batches are the same whatever the number of processes, so that results are the same bit for bit.
    """
    if processes() == 1:
        yield from map(function, read_batches(dataset, batch_size=batch_size))
        return
    count, size, read_any = count_images(dataset), batch_size or fitting_size(dataset), False
    for result in map_shared(partial(_read_and_call, function, dataset), [range(start, min(start + size, count)) for start in range(0, count, size)]):
        if result is not None:
            read_any = True
            yield result
    if not read_any:
        raise none_readable(dataset, range(count))


def _read_and_call(function: Callable[[Batch], T], dataset: Dataset, parts: Iterable[range]) -> Iterator[T | None]:
    for batch in read_parts(dataset, parts):
        yield function(batch) if len(batch) else None


@contextmanager
def step_together() -> Iterator[None]:
    """Within this context, which all processes enter, each step is taken by all of them."""
    assert _team is not None
    _team.in_step = True
    try:
        yield
    finally:
        _team.in_step = False


def own_number() -> int:
    """The number of this process in a step; 0 outside of one."""
    return _team.rank if _team is not None and _team.in_step else 0


def by_rows(function: Callable[[slice], Tensor], count: int) -> Tensor:
    """``function`` of all rows of a batch of ``count``. In a step, each process computes its share of the rows, and all of them get all.

    A gradient flows back into a process's own rows alone, so that the sum over the processes is the gradient of whatever is made of all rows.
    """
    if _team is None or not _team.in_step:
        return function(slice(0, count))
    start, stop = (number * count // _team.size for number in (_team.rank, _team.rank + 1))
    own = function(slice(start, stop)) if stop > start else function(slice(0, 1))[:0]
    return _AllRows.apply(own, start, count)


class _AllRows(torch.autograd.Function):
    """Every process's rows put together."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, start: int, count: int) -> Tensor:  # noqa: ANN401 -- torch's own signature
        ctx.rows = slice(start, start + len(own))
        whole = own.new_zeros(count, *own.shape[1:])
        whole[ctx.rows] = own
        with _linked():
            dist.all_reduce(whole)  # adding zeros changes nothing
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient[ctx.rows], None, None


def add_up_gradients(parameters: Sequence[Tensor]) -> None:
    """In a step, replaces each gradient by its sum over the processes. A weight that has none anywhere keeps none."""
    if _team is None or not _team.in_step:
        return
    have = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=parameters[0].device)
    gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
    flat = torch.cat([have, *(gradient.float().flatten() for gradient in gradients)])
    with _linked():
        dist.all_reduce(flat)
    have, *parts = flat.split([len(parameters), *(gradient.numel() for gradient in gradients)])
    for parameter, gradient, part, some in zip(parameters, gradients, parts, have.tolist(), strict=True):
        parameter.grad = gradient.copy_(part.view_as(gradient)) if some else None


def _tell(words: object) -> None:
    """Sends something from the main process to all helpers."""
    assert _team is not None
    packed = _pack(words)
    with _linked():
        dist.broadcast(torch.tensor([len(packed)]), 0, group=_team.control)
        dist.broadcast(packed, 0, group=_team.control)


def _hear() -> Any:  # noqa: ANN401 -- whatever is told
    assert _team is not None
    size = torch.empty(1, dtype=torch.int64)
    with _linked():
        dist.broadcast(size, 0, group=_team.control)
        packed = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(packed, 0, group=_team.control)
    return pickle.loads(packed.numpy().data)


@contextmanager
def _linked() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            "a process that torchrun started has ended; its own words or torchrun's say why. What is finished is kept: the same command goes on from "
            "there, with any number of processes"
        ) from error


def _pack(value: object) -> Tensor:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


class _Pickler(pickle.Pickler):
    """Names what every process opened for itself, and sends weights without the network that they belong to."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        assert _team is not None and _team.opened is not None
        self.names = {id(value): name for name, value in _team.opened.items() if name != "model"}
        self.layers: dict[int, tuple[Classifier, str]] = {}

    def reducer_override(self, value: Any) -> Any:  # noqa: ANN401 -- pickle's own signature
        """How a value is sent; NotImplemented for pickle's own way."""
        if id(value) in self.names:
            return _find_opened, (self.names[id(value)],)
        if isinstance(value, Classifier):
            self.layers |= {id(layer): (value, name) for name, layer in value.named_modules() if name}
            return _copy_own_model, (value.state_dict(),)
        if id(value) in self.layers:
            return nn.Module.get_submodule, self.layers[id(value)]
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return _to_own_device, (value.detach().cpu(),)
        return NotImplemented


def _find_opened(name: str) -> object:
    assert _team is not None and _team.opened is not None
    return _team.opened[name]


def _copy_own_model(weights: Mapping[str, Tensor]) -> nn.Module:
    own = _find_opened("model")
    assert isinstance(own, nn.Module)
    model = copy_model(own)
    model.load_state_dict(weights)
    return model


def _to_own_device(tensor: Tensor) -> Tensor:
    own = _find_opened("model")
    assert isinstance(own, nn.Module)
    return tensor.to(next(own.parameters()).device)
