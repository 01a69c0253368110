"""torch's attention and armlet's in its place: the same answers, and the same state dicts are read."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from armlet.models.attention import Decomposed
from armlet.models.torch_attention import TorchAttention
from armlet.models.torch_layers import with_own_layers

N, T, S, E, HEADS = 3, 5, 7, 12, 4


def drawn(module: nn.Module) -> nn.Module:
    """Give every parameter values that matter: torch begins with biases of zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def both(theirs: nn.Module) -> tuple[nn.Module, nn.Module]:
    drawn(theirs)
    return theirs, with_own_layers(nn.Sequential(copy.deepcopy(theirs)))[0].train(theirs.training)


def seen(*shape: int) -> Tensor:
    """Draw booleans that hide some, and never all of a row."""
    hidden = torch.rand(shape) < 0.4
    hidden[..., 0] = False
    return hidden


def as_numbers(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape).masked_fill(hidden, float("-inf")) + 0.5 * torch.randn(hidden.shape)


MASKS = {
    "none": lambda: {},
    "keys": lambda: {"key_padding_mask": seen(N, S)},
    "pairs": lambda: {"attn_mask": seen(T, S)},
    "pairs of each head": lambda: {"attn_mask": seen(N * HEADS, T, S)},
    "both": lambda: {"key_padding_mask": seen(N, S), "attn_mask": seen(T, S)},
    "both, numbers": lambda: {
        "key_padding_mask": as_numbers(seen(N, S)),
        "attn_mask": as_numbers(seen(N * HEADS, T, S)),
    },
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"bias": False}, {"kdim": 6, "vdim": 9, "batch_first": True}, {"kdim": 6}],
    ids=str,
)
def test_answers_and_shares_are_torchs(options, mask):
    theirs, ours = both(nn.MultiheadAttention(E, HEADS, **options).eval())
    assert isinstance(ours, TorchAttention)
    extents = (E, T), (options.get("kdim", E), S), (options.get("vdim", E), S)
    inputs = [
        torch.randn(N, n, width) if options.get("batch_first") else torch.randn(n, N, width)
        for width, n in extents
    ]
    given = MASKS[mask]()
    for weights, average in product([False, True], [False, True]):
        asked = {"need_weights": weights, "average_attn_weights": average, **given}
        (found, shares), (expected, expected_shares) = ours(*inputs, **asked), theirs(*inputs, **asked)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(shares, expected_shares)


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sample_without_a_batch_is_taken_too(batch_first):
    theirs, ours = both(nn.MultiheadAttention(E, HEADS, batch_first=batch_first))
    x, hidden = torch.randn(T, E), seen(T)
    for average in (False, True):
        torch.testing.assert_close(
            ours(x, x, x, hidden, average_attn_weights=average),
            theirs(x, x, x, hidden, average_attn_weights=average),
        )


def test_a_causal_mask_is_applied_whether_or_not_it_is_said_to_be_one():
    theirs, ours = both(nn.MultiheadAttention(E, HEADS, batch_first=True).eval())
    x, mask = torch.randn(N, T, E), nn.Transformer.generate_square_subsequent_mask(T)
    expected = theirs(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]
    for said in (False, True):
        torch.testing.assert_close(ours(x, x, x, attn_mask=mask, is_causal=said)[0], expected)
    with pytest.raises(ValueError, match="is_causal says what attn_mask is, and there is none"):
        ours(x, x, x, is_causal=True)


def test_who_may_attend_to_nothing_gets_numbers():
    _, ours = both(nn.MultiheadAttention(E, HEADS, batch_first=True))
    x, hidden = torch.randn(N, T, E), torch.ones(N, T, dtype=torch.bool)
    assert torch.isfinite(ours(x, x, x, hidden)[0]).all()


def test_dropout_is_that_of_the_shares():
    _, ours = both(nn.MultiheadAttention(E, HEADS, dropout=0.5, batch_first=True))
    x = torch.randn(N, T, E)
    _, shares = ours.train()(x, x, x, average_attn_weights=False)
    assert 0.3 < float((shares == 0).float().mean()) < 0.7
    assert not (ours.eval()(x, x, x)[1] == 0).any()


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 9}, {"bias": False}], ids=str)
def test_trained_weights_under_torchs_names_are_read(options):
    first, other = (drawn(nn.Sequential(nn.MultiheadAttention(E, HEADS, **options))) for _ in range(2))
    trained = other.state_dict()
    x, k, v = torch.randn(T, N, E), torch.randn(S, N, options.get("kdim", E)), torch.randn(S, N, 9)
    v = v if "vdim" in options else torch.randn(S, N, E)
    expected, before = other[0](x, k, v)[0], with_own_layers(first)
    assert not torch.allclose(before[0](x, k, v)[0], expected)
    before.load_state_dict(trained)
    torch.testing.assert_close(before[0](x, k, v)[0], expected)
    with pytest.raises(RuntimeError, match="size mismatch"):
        before.load_state_dict(nn.Sequential(nn.MultiheadAttention(2 * E, HEADS, **options)).state_dict())


def test_what_is_not_the_same_stays_torchs():
    for options in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        layer = nn.MultiheadAttention(E, HEADS, **options)
        assert with_own_layers(layer) is layer

    class Turned(nn.MultiheadAttention):
        def forward(self, query, key, value, **more):
            return super().forward(-query, key, value, **more)

    turned = Turned(E, HEADS)
    assert with_own_layers(turned) is turned


def test_a_layer_keeps_its_type_and_what_is_frozen():
    layer = nn.MultiheadAttention(E, HEADS, dtype=torch.float64)
    layer.out_proj.bias.requires_grad_(False)
    layer.in_proj_weight.requires_grad_(False)
    own = with_own_layers(layer)
    frozen = {name for name, parameter in own.named_parameters() if not parameter.requires_grad}
    assert frozen == {"query.weight", "key.weight", "value.weight", "output.bias"}
    assert {parameter.dtype for parameter in own.parameters()} == {torch.float64}


def test_a_layer_under_two_names_stays_one():
    layer = nn.MultiheadAttention(E, HEADS)
    module = with_own_layers(nn.ModuleDict({"a": layer, "b": layer, "c": nn.Sequential(layer)}))
    assert isinstance(module["a"], TorchAttention)
    assert module["a"] is module["b"] is module["c"][0]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_encoders_around_it_are_torchs(batch_first, norm_first, padded, grad, training):
    layer = nn.TransformerEncoderLayer(E, HEADS, 20, 0.0, "gelu", 1e-5, batch_first, norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first and not norm_first)
    theirs, ours = both(encoder.train(training))
    assert all(isinstance(layer.self_attn, TorchAttention) for layer in ours.layers)
    x = torch.randn(N, T, E) if batch_first else torch.randn(T, N, E)
    lengths = torch.tensor([5, 2, 3])
    hidden = torch.arange(T)[None] >= lengths[:, None] if padded else None
    with torch.set_grad_enabled(grad):
        found, expected = (m(x, src_key_padding_mask=hidden) for m in (ours, theirs))
    behind = torch.zeros(N, T, dtype=torch.bool) if hidden is None else hidden
    valid = ~(behind if batch_first else behind.T)  # what is padding, torch's nested tensors leave out
    torch.testing.assert_close(found[valid], expected[valid])


def test_whole_transformers_around_it_are_torchs_with_causal_masks_too():
    theirs, ours = both(nn.Transformer(E, HEADS, 2, 2, 20, 0.0, batch_first=True).eval())
    x, y = torch.randn(N, S, E), torch.randn(N, T, E)
    masks = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(T),
        "memory_key_padding_mask": as_numbers(seen(N, S)),
    }
    torch.testing.assert_close(ours(x, y, **masks), theirs(x, y, **masks))


SDPA = {
    "plain": lambda: {},
    "causal": lambda: {"is_causal": True},
    "scale": lambda: {"scale": 0.7},
    "numbers": lambda: {"attn_mask": as_numbers(seen(T, S))},
    "numbers of each head": lambda: {"attn_mask": as_numbers(seen(N, HEADS, T, S))},
    "booleans": lambda: {"attn_mask": ~seen(N, 1, 1, S)},
}


@pytest.mark.parametrize("case", SDPA)
def test_taken_apart_torchs_function_gives_the_same(case):
    query, key, value = torch.randn(N, HEADS, T, 6), torch.randn(N, HEADS, S, 6), torch.randn(N, HEADS, S, 8)
    given = SDPA[case]()
    expected = functional.scaled_dot_product_attention(query, key, value, **given)
    with Decomposed():
        found = functional.scaled_dot_product_attention(query, key, value, **given)
    torch.testing.assert_close(found, expected)


def test_taken_apart_heads_that_share_keys_and_values_give_the_same():
    query, key, value = torch.randn(N, HEADS, T, 6), torch.randn(N, 2, S, 6), torch.randn(N, 2, S, 6)
    expected = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    with Decomposed():
        found = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        with pytest.raises(ValueError, match="a mask or is_causal, not both"):
            functional.scaled_dot_product_attention(query, query, query, seen(T, T), is_causal=True)
    torch.testing.assert_close(found, expected)


FILLS = {
    "method": lambda scores, hidden: scores.masked_fill(hidden, -torch.inf).softmax(-1),
    "function": lambda scores, hidden: functional.softmax(torch.masked_fill(scores, hidden, -1e4), dim=-1),
    "where": lambda scores, hidden: torch.softmax(torch.where(~hidden, scores, -1e9), -1),
    "where hidden": lambda scores, hidden: nn.Softmax(-1)(torch.where(hidden, -torch.inf, scores)),
}
KEPT = {
    "a number near scores": lambda scores, hidden: scores.masked_fill(hidden, -3.0).softmax(-1),
    "something between": lambda scores, hidden: (scores.masked_fill(hidden, -1e4) / 1e4).softmax(-1),
    "one score for all": lambda scores, hidden: scores[:1, :1, :1, :1].masked_fill(hidden, -1e4).softmax(-1),
    "no softmax": lambda scores, hidden: scores.masked_fill(hidden, -1e9),
}


@pytest.mark.parametrize("form", FILLS | KEPT)
def test_scores_that_are_filled_by_a_mask_are_masked_by_a_sum_of_the_same_shares(form):
    scores, hidden = torch.randn(N, HEADS, T, S), seen(T, S)
    write = (FILLS | KEPT)[form]
    expected, calls = write(scores, hidden), []

    class Recorded(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    with Recorded(), Decomposed():
        found = write(scores, hidden)
    assert torch.equal(found, expected)
    assert (hidden.any(), "add" in calls or "__add__" in calls) == (True, form in FILLS)
