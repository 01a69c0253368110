"""Attention as the operators that pruning and quantisation follow: two products of matrices with a softmax between.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

MASKED = -1e9
"""Added to the scores of what gets no attention: finite, so that nothing becomes NaN, and zero after the softmax."""


def by_head(values: Tensor, size: int) -> Tensor:
    """Return values [N, T, heads × size] as [N, heads, T, size]."""
    # How many heads there are follows from the values: some may have been pruned.
    return values.reshape(-1, values.shape[1], values.shape[2] // size, size).transpose(1, 2)


def merged(values: Tensor) -> Tensor:
    """Return values [N, heads, T, size] as [N, T, heads × size]."""
    return values.transpose(1, 2).reshape(-1, values.shape[2], values.shape[1] * values.shape[3])


def shares(query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """Return how much of each value goes to each query, [..., T, S]; all of a query's add up to one.

    Args:
        query: [..., T, size].
        key: [..., S, size].
        mask: is added to the scores, of a shape that broadcasts to [..., T, S].
        scale: of the products; 1 / √size where it is None.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1) * scale
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1)


def additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add to scores, none of them infinite.

    Args:
        hidden: booleans, true where there is no attention, or numbers that are added.
        dtype: of the scores.
    """
    if hidden.dtype == torch.bool:
        return hidden.to(dtype) * MASKED
    return hidden.clamp(min=MASKED)


def scaled_dot_product_attention(  # noqa: PLR0913 - torch's signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute what torch's function of this name does, operator by operator.

    A query that may attend to nothing attends to everything here; torch gives zeros, or NaN.

    Raises:
        ValueError: it is causal and has a mask besides.
    """
    mask = None
    if is_causal:
        if attn_mask is not None:
            raise ValueError("scaled_dot_product_attention takes a mask or is_causal, not both")
        shape = query.shape[-2], key.shape[-2]
        mask = torch.full(shape, MASKED, dtype=query.dtype, device=query.device).triu(1)
    elif attn_mask is not None:
        mask = additive(~attn_mask if attn_mask.dtype == torch.bool else attn_mask, query.dtype)
    if enable_gqa:
        key, value = (
            found.repeat_interleave(query.shape[-3] // found.shape[-3], dim=-3) for found in (key, value)
        )
    return functional.dropout(shares(query, key, mask, scale), dropout_p) @ value


_FILLS: tuple[Callable[..., object], ...] = (torch.masked_fill, Tensor.masked_fill)
_CHOICES: tuple[Callable[..., object], ...] = (torch.where, Tensor.where)
_SOFTMAXES: tuple[Callable[..., object], ...] = (functional.softmax, torch.softmax, Tensor.softmax)
_HIDING = -1e4
"""A score of this or less gets no share beside those that attention has: e^-10000 is 0."""


class Decomposed(TorchFunctionMode):
    """A context in which attention is computed, and traced, as the operators that passes follow.

    torch's attention in one operator is computed operator by operator. Where scores are filled with minus infinity, or
    a large negative number, by a boolean mask (`masked_fill`, `where`) right before a softmax, a mask of numbers is
    added instead, as `additive` makes it: each share is the same, but those of a query that may attend to nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._filled: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call a function of torch, or what stands for it."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            func = scaled_dot_product_attention
        elif args and id(args[0]) in self._filled and func in _SOFTMAXES:
            _, scores, hidden = self._filled[id(args[0])]
            args = (scores + additive(hidden, scores.dtype), *args[1:])
        result = func(*args, **kwargs)
        if not kwargs and isinstance(result, Tensor) and (parts := _filled(func, args, result)) is not None:
            self._filled[id(result)] = (result, *parts)  # what is kept keeps its id
        return result


def _filled(
    func: Callable[..., object], args: tuple[object, ...], result: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return scores of the result's shape, and where a function hid them, None if it did something else."""
    match args:
        case (Tensor() as scores, Tensor() as hidden, int() | float() as value) if func in _FILLS:
            pass
        case (Tensor() as seen, Tensor() as scores, int() | float() as value) if func in _CHOICES:
            hidden = ~seen
        case (Tensor() as hidden, int() | float() as value, Tensor() as scores) if func in _CHOICES:
            pass
        case _:
            return None
    return (scores, hidden) if value <= _HIDING and scores.shape == result.shape else None
