"""Torch's recurrent layers and cells, step by step in their gates: sums, products, sigmoids and tanh, each of which has a rule of its own.

The equations are those of torch's documentation of LSTM, GRU and RNN. The input's share of the gates is one product for all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# What goes from one step to the next: the hidden state first, then an LSTM's cell.
State = tuple[Tensor, ...]


class Weights(NamedTuple):
    """The weights of one layer in one direction, in the order in which torch has them."""

    into: Tensor
    hidden: Tensor
    into_bias: Tensor | None = None
    hidden_bias: Tensor | None = None
    projection: Tensor | None = None  # of an LSTM's hidden state


def _lstm(into: Tensor, state: State, weights: Weights) -> State:
    hidden, cell = state
    entering, kept, new, shown = (into + F.linear(hidden, weights.hidden, weights.hidden_bias)).chunk(4, -1)
    cell = kept.sigmoid() * cell + entering.sigmoid() * new.tanh()
    hidden = shown.sigmoid() * cell.tanh()
    return hidden if weights.projection is None else F.linear(hidden, weights.projection), cell


def _gru(into: Tensor, state: State, weights: Weights) -> State:
    (hidden,) = state
    reset, kept, new = into.chunk(3, -1)
    hidden_reset, hidden_kept, hidden_new = F.linear(hidden, weights.hidden, weights.hidden_bias).chunk(3, -1)
    new = (new + (reset + hidden_reset).sigmoid() * hidden_new).tanh()
    return (new + (kept + hidden_kept).sigmoid() * (hidden - new),)


def _rnn(activation: Callable[[Tensor], Tensor], into: Tensor, state: State, weights: Weights) -> State:
    return (activation(into + F.linear(state[0], weights.hidden, weights.hidden_bias)),)


_STEPS: dict[str, Callable[[Tensor, State, Weights], State]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": partial(_rnn, torch.tanh),
    "rnn_relu": partial(_rnn, torch.relu),
}


def as_steps(name: str, args: tuple) -> Callable[..., Any] | None:
    """The function of this name, such as ``lstm`` or ``lstm_cell``, written in steps; None if it is no such function, or of packed sequences."""
    if name.removesuffix("_cell") not in _STEPS:
        return None
    if name.endswith("_cell"):
        return partial(_run_cell, name.removesuffix("_cell"))
    return partial(_run_layers, name) if isinstance(args[3], bool) else None  # a packed sequence has its weights in this place


def _run_cell(name: str, input: Tensor, hx: Tensor | State, *weights: Any) -> Tensor | State:
    state = hx if isinstance(hx, tuple) else (hx,)
    given = Weights(*weights)
    state = _STEPS[name](F.linear(input, given.into, given.into_bias), state, given)
    return state if name == "lstm" else state[0]


class Layers(NamedTuple):
    """The arguments of ``torch.lstm`` and the others, in their order."""

    input: Tensor
    hx: Tensor | Sequence[Tensor]
    params: Sequence[Tensor]
    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool


def _run_layers(name: str, *args: Any) -> tuple[Tensor, ...]:
    """The outputs of the last layer at each step, and the last states of each layer and direction, as torch's function gives them."""
    given = Layers(*args)
    starts = [tensor.unbind(0) for tensor in ((given.hx,) if isinstance(given.hx, Tensor) else given.hx)]
    directions, axis, input = 1 + given.bidirectional, int(given.batch_first), given.input
    each, ends = len(given.params) // (given.num_layers * directions), []
    for layer in range(given.num_layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            own = given.params[place * each : (place + 1) * each]
            weights = Weights(*own) if given.has_biases else Weights(own[0], own[1], projection=own[2] if each > 2 else None)
            steps = F.linear(input, weights.into, weights.into_bias).unbind(axis)
            state, shown = tuple(start[place] for start in starts), []
            for step in steps[::-1] if direction else steps:
                state = _STEPS[name](step, state, weights)
                shown.append(state[0])
            outputs.append(torch.stack(shown[::-1] if direction else shown, axis))
            ends.append(state)
        input = torch.cat(outputs, -1)
        if given.dropout and layer + 1 < given.num_layers:
            input = F.dropout(input, given.dropout, given.train)
    return input, *(torch.stack(states) for states in zip(*ends, strict=True))
