"""torch's recurrent layers and armlet's in their place: the same answers, and the same state dicts are read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from armlet.models.torch_layers import with_own_layers
from armlet.models.torch_recurrent import TorchRecurrent

LAYERS = {
    "lstm": lambda **o: nn.LSTM(5, 7, **o),
    "gru": lambda **o: nn.GRU(5, 7, **o),
    "tanh": lambda **o: nn.RNN(5, 7, **o),
    "relu": lambda **o: nn.RNN(5, 7, nonlinearity="relu", **o),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"num_layers": 3}, {"bidirectional": True, "num_layers": 2}, {"bias": False}],
    ids=str,
)
@pytest.mark.parametrize("cell", LAYERS)
def test_answers_and_states_are_torchs(cell, options, training):
    torch.manual_seed(0)
    theirs = LAYERS[cell](**options).train(training)
    ours = with_own_layers(nn.Sequential(theirs))[0].train(training)
    assert isinstance(ours, TorchRecurrent)
    x = torch.randn(4, 6, 5)
    outputs, states = ours(x)
    expected, expected_states = theirs(x)
    if cell == "lstm":
        assert states[1] is None
        states, expected_states = states[0], expected_states[0]
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(states, expected_states)


def test_trained_weights_under_torchs_names_are_read():
    torch.manual_seed(1)
    first, other = (nn.Sequential(nn.GRU(5, 7, 2, bidirectional=True, batch_first=True)) for _ in range(2))
    trained, x = other.state_dict(), torch.randn(2, 6, 5)
    expected, before = other(x)[0], with_own_layers(first)
    assert not torch.allclose(before(x)[0], expected)
    before.load_state_dict(trained)
    torch.testing.assert_close(before(x)[0], expected)
    with pytest.raises(RuntimeError, match="size mismatch"):
        before.load_state_dict(nn.Sequential(nn.GRU(5, 6, 2, bidirectional=True)).state_dict())


def test_dropout_lies_between_the_layers():
    torch.manual_seed(0)
    layer = with_own_layers(nn.LSTM(5, 7, 2, dropout=0.5))
    x = torch.randn(6, 4, 5)
    assert not torch.equal(layer.train()(x)[0], layer(x)[0])
    assert torch.equal(layer.eval()(x)[0], layer(x)[0])


def test_what_is_not_the_same_stays_torchs_or_is_refused():
    projected = nn.LSTM(5, 7, proj_size=3)
    assert with_own_layers(projected) is projected
    layer = with_own_layers(nn.GRU(5, 7))
    with pytest.raises(TypeError, match="leave the initial state out"):
        layer(torch.randn(6, 4, 5), torch.zeros(1, 4, 7))
