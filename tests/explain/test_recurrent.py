"""Recurrent layers step by step: the same numbers as torch's own, and exact heatmaps."""

import pytest
import torch
from torch import nn

from rightreasons.errors import UnsupportedLayer
from rightreasons.explain.attribute import attribute_images
from rightreasons.explain.recurrent import as_steps

# A layer with a projection tells that another library does not have it.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")

STEPS, WIDTH = 3, 6
LAYERS = {
    "lstm": lambda: nn.LSTM(WIDTH, 4, batch_first=True),
    "lstm, two layers in both directions": lambda: nn.LSTM(WIDTH, 4, 2, bidirectional=True, dropout=0.5, batch_first=True),
    "lstm with a projection": lambda: nn.LSTM(WIDTH, 4, 2, proj_size=3, batch_first=True),
    "lstm without biases": lambda: nn.LSTM(WIDTH, 4, proj_size=3, bias=False, bidirectional=True, batch_first=True),
    "lstm, steps first": lambda: nn.LSTM(WIDTH, 4),
    "gru": lambda: nn.GRU(WIDTH, 4, 2, bidirectional=True, batch_first=True),
    "gru, steps first": lambda: nn.GRU(WIDTH, 4, bias=False),
    "rnn of tanh": lambda: nn.RNN(WIDTH, 4, batch_first=True),
    "rnn of relu": lambda: nn.RNN(WIDTH, 4, 2, nonlinearity="relu", bidirectional=True, batch_first=True),
}
CELLS = {"lstm_cell": nn.LSTMCell, "gru_cell": nn.GRUCell, "rnn_tanh_cell": nn.RNNCell}


class Rows(nn.Module):
    """Reads a picture row by row; the answer is of all outputs and all last states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.enter, self.layer, self.head = nn.Linear(3 * STEPS, WIDTH), layer, nn.Identity()
        self.head = nn.Linear(self(torch.zeros(1, 3, STEPS, STEPS)).shape[1], 3)

    def forward(self, images):
        rows = self.enter(images.transpose(1, 2).flatten(2))
        first = 0 if self.layer.batch_first else 1
        outputs, states = self.layer(rows if first == 0 else rows.transpose(0, 1))
        ends = states if isinstance(states, tuple) else (states,)
        outputs = outputs if first == 0 else outputs.transpose(0, 1)
        return self.head(torch.cat([outputs.flatten(1), *(end.transpose(0, 1).flatten(1) for end in ends)], 1))


class Cells(nn.Module):
    """The same with a cell, called for each row."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.enter, self.cell, self.head = nn.Linear(3 * STEPS, WIDTH), cell, nn.Linear(4, 3)

    def forward(self, images):
        state = None
        for row in self.enter(images.transpose(1, 2).flatten(2)).unbind(1):
            state = self.cell(row, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def draw(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, STEPS, STEPS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arguments_of(layer: nn.Module, inputs: torch.Tensor) -> tuple:
    """What the layer gives to torch's function."""
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func.__name__ in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
                seen.append((func.__name__, args))
            return func(*args, **kwargs or {})

    with Watch():
        layer(inputs)
    return seen[0]


@pytest.mark.parametrize("kind", LAYERS)
def test_steps_give_what_the_layer_gives(kind, build_seeded):
    layer = build_seeded(LAYERS[kind]).double().eval()
    inputs = torch.randn(3, STEPS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, states = layer(inputs)
    name, args = arguments_of(layer, inputs)
    steps = as_steps(name, args)
    assert steps is not None
    found, *ends = steps(*args)
    torch.testing.assert_close(found, expected)
    for end, state in zip(ends, states if isinstance(states, tuple) else (states,), strict=True):
        torch.testing.assert_close(end, state)


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_heatmaps_of_recurrent_layers_are_exact(kind, build_seeded):
    model = build_seeded(lambda: Cells(CELLS[kind](WIDTH, 4)) if kind in CELLS else Rows(LAYERS[kind]())).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # so that the gates are far from linear
    images, baselines, targets = draw(2, 1), draw(3, 2), torch.tensor([0, 2])
    found = attribute_images(model, images, baselines, targets)
    with torch.no_grad():
        expected = model(images).gather(1, targets[:, None])[:, 0] - model(baselines)[:, targets].mean(0)
    torch.testing.assert_close(found.heatmaps.sum((1, 2)), expected)
    assert (found.heatmaps.abs().amax((1, 2)) > 0.05).all()


def test_a_packed_sequence_is_refused_by_name(build_seeded):
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.layer = nn.Linear(3 * STEPS, WIDTH), nn.LSTM(WIDTH, 4, batch_first=True)

        def forward(self, images):
            rows = self.enter(images.transpose(1, 2).flatten(2))
            packed = nn.utils.rnn.pack_padded_sequence(rows, torch.full((len(rows),), STEPS), batch_first=True)
            return self.layer(packed)[1][0][-1]

    model = build_seeded(lambda: Packed().double().eval())
    with pytest.raises(UnsupportedLayer, match=r"_pack_padded_sequence|lstm"):
        attribute_images(model, draw(2, 1), draw(1, 2))
