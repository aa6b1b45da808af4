"""Masks as lengths of runs: as they are, as COCO's text (column by column), and as Label Studio's packed bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

# COCO writes six bits in a character, from this one on: five of the number, and one that says that more follow.
_FIRST_CHARACTER, _BITS, _MORE, _SIGN = 48, 5, 0x20, 0x10
# Label Studio packs four channels of eight bits a pixel; a run's length takes one of four numbers of bits.
_CHANNELS, _WORD = 4, 8
_LENGTH_BITS = (3, 4, 8, 16)


def to_runs(marked: Bool[Tensor, " pixel"]) -> list[int]:
    """The lengths of runs of unmarked and marked pixels in turn; the first is of unmarked pixels, and may be 0."""
    starts = (marked[1:] != marked[:-1]).nonzero()[:, 0] + 1
    edges = [0, *starts.tolist(), len(marked)]
    lengths = [end - start for start, end in zip(edges[:-1], edges[1:], strict=True)]
    return [0, *lengths] if bool(marked[0]) else lengths


def from_runs(lengths: object, size: tuple[int, int]) -> Bool[Tensor, " pixel"]:
    """The height x width pixels that ``to_runs`` gave. Raises ValueError for lengths that do not cover them."""
    whole = size[0] * size[1]
    if not isinstance(lengths, list) or len(lengths) > whole + 1 or any(type(length) is not int or length < 0 for length in lengths):
        raise ValueError("the lengths of runs are no list of whole numbers from 0 on")
    if sum(lengths) != whole:
        raise ValueError(f"the runs cover {sum(lengths)} pixels; expected {size[0]} x {size[1]} = {whole}")
    return (torch.arange(len(lengths)) % 2 == 1).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))


def to_coco(mask: Bool[Tensor, "height width"]) -> dict[str, object]:
    """A mask as COCO's compressed runs, {"size": [height, width], "counts": text}."""
    counts = to_runs(mask.T.flatten())
    text = []
    for place, count in enumerate(counts):
        value, more = count - counts[place - 2] if place > 2 else count, True
        while more:
            bits, value = value & 0x1F, value >> _BITS
            more = value != (-1 if bits & _SIGN else 0)
            text.append(chr((bits | _MORE if more else bits) + _FIRST_CHARACTER))
    return {"size": list(mask.shape), "counts": "".join(text)}


def from_coco(counts: object, size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """The mask of COCO's runs, a list or a compressed text. Raises ValueError for runs that do not cover the image."""
    lengths = _read_coco_text(counts) if isinstance(counts, str) else counts
    return from_runs(lengths, size).view(size[1], size[0]).T.contiguous()


def _read_coco_text(text: str) -> list[int]:
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - _FIRST_CHARACTER
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} is no character of COCO's compressed runs")
        value |= (bits & 0x1F) << shift
        shift += _BITS
        if not bits & _MORE:
            if bits & _SIGN:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value, shift = 0, 0
        elif shift > 60:
            raise ValueError("a number in COCO's compressed runs does not end")
    return counts


def to_label_studio(mask: Bool[Tensor, "height width"]) -> list[int]:
    """A mask as Label Studio's bytes: a head with the sizes, then runs of equal values, of four channels for each pixel."""
    lengths = [length * _CHANNELS for length in to_runs(mask.flatten())]
    bits = [f"{sum(lengths):032b}", f"{_WORD - 1:05b}", *(f"{size - 1:04b}" for size in _LENGTH_BITS)]
    for place, length in enumerate(lengths):
        value = f"{255 * (place % 2):08b}"
        while length:
            which = next((number for number, size in enumerate(_LENGTH_BITS) if length <= 1 << size), len(_LENGTH_BITS) - 1)
            part = min(length, 1 << _LENGTH_BITS[which])
            bits.append(f"1{which:02b}{part - 1:0{_LENGTH_BITS[which]}b}{value}")
            length -= part
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return [int(stream[start : start + 8], 2) for start in range(0, len(stream), 8)]


def from_label_studio(packed: object, size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """The mask of Label Studio's bytes: where the last channel is not 0. Raises ValueError for bytes that are no such mask."""
    if not isinstance(packed, list) or any(type(byte) is not int or not 0 <= byte <= 255 for byte in packed):
        raise ValueError("the rle is no list of bytes")
    stream = _Bits(bytes(packed))
    count, word = stream.read(32), stream.read(5) + 1
    if count != size[0] * size[1] * _CHANNELS or word != _WORD:
        raise ValueError(f"the rle has {count} values of {word} bits; expected {_CHANNELS} of {_WORD} bits for each of {size[0]} x {size[1]} pixels")
    lengths = [stream.read(4) + 1 for _ in range(4)]
    values, done = np.zeros(count, dtype=np.uint8), 0
    while done < count:
        same, length = stream.read(1), 0
        length = stream.read(lengths[stream.read(2)]) + 1
        if done + length > count:
            raise ValueError("the rle has more values than the image")
        values[done : done + length] = stream.read(_WORD) if same else [stream.read(_WORD) for _ in range(length)]
        done += length
    return torch.from_numpy(values.reshape(*size, _CHANNELS)[..., -1] > 0)


class _Bits:
    """Numbers of some bits each, read one after another."""

    def __init__(self, content: Sequence[int]) -> None:
        self._text = "".join(f"{byte:08b}" for byte in content)
        self._at = 0

    def read(self, bits: int) -> int:
        """The next number. Raises ValueError at the end."""
        part = self._text[self._at : self._at + bits]
        if len(part) < bits:
            raise ValueError("the rle ends in the middle")
        self._at += bits
        return int(part, 2)
