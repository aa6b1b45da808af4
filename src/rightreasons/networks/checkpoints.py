"""Checkpoints as people have them: which of a file's tensors are the network's weights, under which prefix, and which class names lie beside them."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rightreasons.errors import ModelError

Note = Callable[[str], None]

# The keys under which training programs keep the weights. Averaged weights come first, as in timm's own loading: they are the ones that were scored.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
CONTAINERS = (*AVERAGED, "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
# Such keys are followed at most this many levels deep.
DEPTH = 3
# Names that torch.compile, DataParallel, FSDP and activation checkpointing put between the names of modules.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# The auxiliary heads of torchvision's Inception v3 and GoogLeNet: training alone uses them.
AUXILIARY = ("AuxLogits", "aux1", "aux2")
# Records of settings and results that may lie beside the weights; opening them runs nothing.
PLAIN = (argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath)
# A part of a tensor's name that takes no part in the logits, though it may stand beside a network in one module.
BESIDE = re.compile(r"(\w+_)?(loss|criterion|metrics?|accuracy)(_\w+)?|n_averaged|total_ops|total_params")
# The keys under which programs keep class names, without word separators; lists of names are in the order of the outputs.
NAMES = re.compile(
    r"(class|label)(2|to)(id|idx|index)|(id|idx|index)(2|to)(class|label|name)s?|class(es|names?|list|map)|names|vocab|labels|labelnames"
)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, with wrappers' parts removed from their names; ``taken`` is the key under which they were.

    ``listed`` has each list of class names, with its key; ``others`` are the keys of further state dicts, which are not taken.
    ``parallel`` says that DataParallel's name was among the wrappers.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    taken: str | None = None
    listed: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    parallel: bool = False

    @property
    def names(self) -> tuple[str, ...] | None:
        """The classes in the order of the outputs; None if the file has no names. Raises ModelError if it has them in several orders."""
        if len(self.listed) > 1:
            orders = "; ".join(f"{key}: {', '.join(names[:6])}" for names, key in self.listed.items())
            raise ModelError(f"the checkpoint {self.path} names its classes in several ways ({orders}): state their order in [model] classes")
        return next(iter(self.listed), None)


def read_checkpoint(path: Path) -> Checkpoint:
    """A safetensors file, a state dict saved by torch, or a training program's checkpoint, whatever its suffix. Nothing in the file is run.

    Raises ModelError if the file cannot be read, or if it is not clear which tensors are the network's.
    """
    stored: object
    if _is_safetensors(path):
        try:
            with safe_open(path, "pt") as file:
                words = {key: _from_json(value) for key, value in (file.metadata() or {}).items()}
            return _take(Checkpoint(path, safetensors.torch.load_file(path), None, dict(_find_names(words))))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot read the checkpoint {path}: {error}") from error
    stored = _load(path)
    if not isinstance(stored, Mapping):
        raise ModelError(f"the checkpoint {path} holds a {type(stored).__name__}, and a state dict of tensors was expected: save model.state_dict()")
    states = dict(_find_states(stored))
    ranked = [key for name in CONTAINERS for key in states if name in key.split(".")]
    key = "" if "" in states else next(iter([*ranked, *states] if ranked or len(states) == 1 else []), None)
    if key is None:
        there = f"several state dicts ({_some(states)})" if states else f"no state dict among its entries ({_some(stored)})"
        raise ModelError(f"the checkpoint {path} has {there}: save the state dict of the network alone, model.state_dict()")
    others = tuple(other for other in states if other != key)
    return _take(Checkpoint(path, states[key], key or None, dict(_find_names(stored)), others))


def _find_states(stored: Mapping[Any, Any], key: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state dicts in a file, by the keys that lead to them; numbers and settings may stand beside the tensors of each."""
    tensors = {name: value for name, value in stored.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if len(tensors) * 2 > len(stored):
        yield key, tensors
    elif depth < DEPTH:
        for name, value in stored.items():
            if isinstance(name, str) and isinstance(value, Mapping):
                yield from _find_states(value, f"{key}.{name}" if key else name, depth + 1)


def _is_safetensors(path: Path) -> bool:
    """Recognised by content: eight bytes with the length of a JSON header, then its first brace. Raises ModelError for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ModelError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    if start.startswith(b"version h"):
        raise ModelError(f"the checkpoint {path} is a pointer that Git LFS left instead of the file: fetch it with `git lfs pull`")
    return start[8:] == b"{"


def _take(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with wrappers' parts removed from its tensors' names; unchanged if two names would become one."""
    names = {name: _clean(name) for name in checkpoint.tensors}
    if len(set(names.values())) < len(names):
        return checkpoint
    parallel = any("module" in name.split(".") for name in names)
    return replace(checkpoint, tensors={names[name]: value for name, value in checkpoint.tensors.items()}, parallel=parallel)


def load_weights(network: nn.Module, checkpoint: Checkpoint, *, note: Note, heads: Collection[str] = (), start: bool = False) -> None:
    """The network's weights from a checkpoint, whatever prefix their names have there.

    ``heads`` may be missing or of another shape, and then keep the network's weights. Weights to ``start`` from may have layers that the network
    lacks. Auxiliary heads that the file lacks are taken off the network. Raises ModelError if the rest does not fit.
    """
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    tied = _tied(own)
    absent = [name for name in AUXILIARY if not any(name in key.split(".") for key in checkpoint.tensors)]
    free = {name for name in own if name in heads or name in tied or name.endswith("num_batches_tracked") or name.split(".")[0] in absent}
    required = [name for name in own if name not in free]
    names = _match_names(list(own), required or list(own), own, checkpoint, heads, start=start)
    found = {name: checkpoint.tensors[there] for name, there in names.place.items() if there in checkpoint.tensors}
    found = {name: value for name, value in found.items() if name not in heads or _same_shape(own[name], value)}
    for name, value in found.items():
        if not _same_shape(own[name], value):
            raise _misfit(checkpoint, f"{name} has shape {tuple(value.shape)} in the file and {tuple(own[name].shape)} in the network", start=start)
    for name in tied:
        if not any(other in found for other in tied[name]):
            raise _misfit(checkpoint, f"the network has {name}, and the file has not", start=start)
    left = [name for name in checkpoint.tensors if name not in set(names.place.values())]
    inside = [name for name in left if name.startswith(names.prefix) and not _is_beside(name)]
    if inside and not start:
        more = f", and {len(inside) - 1} more" if len(inside) > 1 else ""
        raise _misfit(checkpoint, f"the file has {inside[0]}{more}, and the network has no place for it", start=start)
    for name in absent:
        if isinstance(getattr(network, name, None), nn.Module):
            setattr(network, name, None)
            vars(network)["aux_logits"] = False
    network.load_state_dict(found, strict=False)
    if checkpoint.taken not in (None, "state_dict") or names.prefix or left or checkpoint.others or checkpoint.parallel:
        place = f" under {checkpoint.taken!r}" if checkpoint.taken else ""
        prefix = f", whose names begin with {names.prefix!r}," if names.prefix else ""
        wrappers = " without 'module.' in their names" if checkpoint.parallel else ""
        others = f"; weights under {_some([repr(key) for key in checkpoint.others])} are not" if checkpoint.others else ""
        rest = f"; left out: {_some(left)}" if left else ""
        note(f"of the checkpoint {checkpoint.path.name} the {len(found)} tensors{place}{prefix} are taken{wrappers}{others}{rest}")


@dataclass(frozen=True)
class _Names:
    """Where each of the network's tensors is in a file, and the prefix that the file's names have."""

    place: Mapping[str, str]
    prefix: str


def _match_names(
    names: Sequence[str], required: Sequence[str], own: Mapping[str, Tensor], checkpoint: Checkpoint, heads: Collection[str], *, start: bool
) -> _Names:
    """One prefix that all required names have in the file; or, where all of the network's names share a first part, the names without it."""
    tensors, first = checkpoint.tensors, _clean(required[0])
    prefixes = sorted(
        {key.removesuffix(first) for key in tensors if key == first or key.endswith(f".{first}")} | {""}, key=lambda prefix: (len(prefix), prefix)
    )
    count = {prefix: sum(prefix + _clean(name) in tensors for name in required) for prefix in prefixes}
    fitting = [_Names({name: prefix + _clean(name) for name in names}, prefix) for prefix in prefixes if count[prefix] == len(required)]
    shared = os.path.commonprefix([_clean(name) for name in names])
    for end in [place + 1 for place, letter in enumerate(shared) if letter == "."] if not fitting else []:
        bare = _clean(required[0])[end:]
        for prefix in [key.removesuffix(bare) for key in tensors if key == bare or key.endswith(f".{bare}")]:
            inner = _Names({name: prefix + _clean(name)[end:] for name in names}, prefix)
            if all(inner.place[name] in tensors for name in required):
                fitting.append(inner)
    same = [one for one in fitting if all(name in heads or _same_shape(own[name], tensors[one.place[name]]) for name in required)] or fitting
    if not same:
        best = max(prefixes, key=lambda prefix: count[prefix])
        missing = next(name for name in required if best + _clean(name) not in tensors)
        known = {best + _clean(name) for name in names}
        unknown = next((key for key in tensors if key not in known), None)
        other = f", and the file's {unknown} is not in the network" if unknown else ""
        raise _misfit(checkpoint, f"the network's {missing} is not in the file{other}; {count[best]} of {len(required)} names agree", start=start)
    if any(not torch.equal(tensors[one.place[name]], tensors[same[0].place[name]]) for one in same[1:] for name in required):
        raise ModelError(
            f"the checkpoint {checkpoint.path} has weights for several such networks, under {_some([repr(one.prefix) for one in same])}: "
            "save the state dict of the one that is meant"
        )
    return same[0]


def _load(path: Path) -> object:
    """What torch saved, with plain records of settings and numbers beside the tensors, and no other objects."""
    numbers = [np.dtype, np.ndarray, *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?", "u1", "U1")}]
    # What pickles of NumPy's scalars and arrays call, by the names of NumPy 1 and 2.
    calls: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
    rebuild: list[Any] = [(call, f"numpy.{core}.multiarray.{call.__name__}") for core in ("core", "_core") for call in calls]
    try:
        # The open file is passed, not its name: by the suffix .safetensors torch would choose another reader.
        with torch.serialization.safe_globals([*PLAIN, *numbers, *rebuild]), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"cannot read the checkpoint {path}: {error}") from error
    except Exception as error:  # torch.load has no exception of its own for what weights_only refuses
        words = str(error)
        if "TorchScript" in words:
            raise ModelError(f"the checkpoint {path} is a TorchScript program, and a state dict was expected: {_SAVE}") from error
        if foreign := re.search(r"GLOBAL ([\w.]+)", words):
            raise ModelError(
                f"the checkpoint {path} holds a pickled object, {foreign[1]}: it is a whole network, as torch.save(model) writes it, or lies "
                f"beside the weights. To open it would run its code. A state dict was expected: {_SAVE}"
            ) from error
        raise ModelError(f"the checkpoint {path} is not a file that torch or safetensors saved, or is damaged: {_SAVE}") from error


_SAVE = "open it where it was made, and save model.state_dict()"


def _misfit(checkpoint: Checkpoint, what: str, *, start: bool) -> ModelError:
    if start:
        return ModelError(f"the pretrained weights in {checkpoint.path} do not fit the network: {what}. Only its head may differ")
    return ModelError(
        f"the checkpoint {checkpoint.path} does not fit the network: {what}. Name the network that it was trained with in [model] source; "
        "weights to start from, with another head, go into [model] pretrained"
    )


def _clean(name: str) -> str:
    """A tensor's name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _same_shape(own: Tensor, stored: Tensor) -> bool:
    return is_lazy(own) or own.shape == stored.shape


def _is_beside(name: str) -> bool:
    parts = name.split(".")
    return parts[0] in AUXILIARY or any(BESIDE.fullmatch(part) for part in parts)


def _tied(own: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The names that share their values with others, each with all of its kind: a file may have one of them alone."""
    groups: dict[object, list[str]] = {}
    for name, value in own.items():
        if not is_lazy(value) and value.numel() and value.device.type != "meta":
            groups.setdefault((value.data_ptr(), value.shape, value.stride()), []).append(name)
    return {name: group for group in groups.values() if len(group) > 1 for name in group}


def _find_names(stored: Mapping[Any, object], path: str = "", depth: int = 0) -> Iterator[tuple[tuple[str, ...], str]]:
    """The lists of class names in a file's tables of settings, in the order of the outputs, each with the keys that lead to it."""
    for key, value in stored.items():
        place = f"{path}.{key}" if path else str(key)
        if NAMES.fullmatch(re.sub(r"[\W_]", "", str(key).lower())) and (names := as_names(value)):
            yield names, place
            continue
        inner = vars(value) if isinstance(value, argparse.Namespace) else value
        if isinstance(inner, Mapping) and depth < DEPTH:
            yield from _find_names(inner, place, depth + 1)


def as_names(value: object) -> tuple[str, ...] | None:
    """Class names by output, from a list, from numbers by name, or from names by number, counted from 0 or 1; None for anything else."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        pairs = [(index, name) if isinstance(name, str) else (name, index) for index, name in value.items()]
        if not all(isinstance(name, str) and str(index).isdecimal() for index, name in pairs):
            return None
        by_index = {int(index): name for index, name in pairs}
        first = min(by_index, default=0)
        in_order = first < 2 and sorted(by_index) == list(range(first, first + len(pairs)))
        value = [by_index[index] for index in sorted(by_index)] if in_order else None
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value) or len(set(value)) < len(value):
        return None
    return tuple(value)


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _some(names: Collection[Any], most: int = 3) -> str:
    shown = ", ".join(str(name) for name in list(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
