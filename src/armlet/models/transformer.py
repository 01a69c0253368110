"""Transformer encoders over patches of pictures, frames of sequences, or tokens of text.

Sources: Vaswani et al. 2017, "Attention Is All You Need"; normalisation before each part, Xiong et al. 2020; patches,
Dosovitskiy et al. 2020. What lies behind a length changes nothing: it is set to zero, gets no attention, and is left
out of the mean that is read.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from armlet.artifacts import InputSpec
from armlet.errors import UsageError
from armlet.models.activations import ACTIVATIONS
from armlet.models.attention import MASKED, by_head, merged, shares
from armlet.models.blocks import skipped
from armlet.models.factors import Factors
from armlet.models.families import FAMILIES, n_classes_of, parse_options


@dataclass(frozen=True, slots=True)
class TransformerOptions:
    """Shape of an encoder.

    Attributes:
        width: of a token; a multiple of the heads.
        expansion: width of the hidden layer of each feed-forward part, over `width`.
        patch: pixels of a square patch's side, or frames of a token; 1 for text.
        positions: "learned", "sinusoidal" or "none".
        dropout: of embeddings, of both parts' results, and before the last layer, in training.
        token_dropout: share of whole tokens that are hidden in training, by a zero embedding.
        stochastic_depth: share of samples that the last block is skipped for in training; earlier blocks less.
        causal: whether a token sees only those before it.
    """

    width: int = 64
    depth: int = 2
    heads: int = 4
    expansion: float = 2.0
    patch: int = 4
    activation: str = "gelu"
    positions: Literal["learned", "sinusoidal", "none"] = "learned"
    dropout: float = 0.1
    token_dropout: float = 0.0
    stochastic_depth: float = 0.0
    causal: bool = False


class Embedding(nn.Module):
    """Makes tokens [N, T, width] of pictures, of sequences, or of text.

    Args:
        spec: of the input.
        options: of the encoder.
    """

    def __init__(self, spec: InputSpec, options: TransformerOptions) -> None:
        super().__init__()
        self.patch, self.n_tokens = options.patch, _n_tokens(spec, options.patch)
        self.token_dropout = options.token_dropout
        self.embed: nn.Module
        if spec.dtype == "int32":
            self.embed = nn.Embedding(spec.n_values or 1, options.width)
            nn.init.normal_(self.embed.weight, std=0.02)
        elif len(spec.shape) == 3:
            self.embed = nn.Conv2d(spec.shape[0], options.width, options.patch, options.patch)
        else:
            self.embed = nn.Linear(options.patch * spec.shape[1], options.width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Make the tokens."""
        if isinstance(self.embed, nn.Linear | Factors) and inputs.dim() == 3:
            inputs = inputs.reshape(-1, inputs.shape[1] // self.patch, self.embed.in_features)
        found: Tensor = self.embed(inputs)
        found = found.flatten(2).transpose(1, 2) if found.dim() == 4 else found
        if self.training and self.token_dropout:
            hidden = torch.rand(found.shape[:2], device=found.device) < self.token_dropout
            found = found.masked_fill(hidden[:, :, None], 0.0)
        return found


class Memory:
    """The keys and values of the tokens of a stream, to which each attention adds those of the new ones.

    Args:
        places: 1.0 where a new token stands, [N, T, new].
        before: keys and values of each attention, [N, T, width], zero where no token was yet.

    Attributes:
        after: the same with the new tokens, of the attentions that were asked so far.
    """

    def __init__(self, places: Tensor, before: list[Tensor]) -> None:
        self._places, self._before = places, before
        self.after: list[Tensor] = []

    def extend(self, new: Tensor) -> Tensor:
        """Add the keys, or the values, [N, new, width] of the next attention; return those of all tokens."""
        # Each place is zero but for one product with 1: nothing is rounded.
        self.after.append(self._before[len(self.after)] + torch.bmm(self._places, new))
        return self.after[-1]


class Attention(nn.Module):
    """Attention of every token to every token: [N, T, width] -> [N, T, width].

    Args:
        width: of a token.
        heads: that share it.
        dropout: of the attention, in training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.size, self.dropout = width // heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None, memory: Memory | None = None) -> Tensor:
        """Attend, to the tokens in the memory too; `mask` is added to the scores [N, heads, T, T]."""
        query, key, value = (layer(tokens) for layer in (self.query, self.key, self.value))
        if memory is not None:
            key, value = memory.extend(key), memory.extend(value)
        query, key, value = (by_head(values, self.size) for values in (query, key, value))
        weights = functional.dropout(shares(query, key, mask), self.dropout, self.training)
        result: Tensor = self.output(merged(weights @ value))
        return result


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a normalisation and beside a shortcut."""

    def __init__(self, options: TransformerOptions, skip: float) -> None:
        super().__init__()
        hidden = round(options.expansion * options.width)
        self.norm1 = nn.LayerNorm(options.width)
        self.attention = Attention(options.width, options.heads, options.dropout)
        self.norm2 = nn.LayerNorm(options.width)
        self.feed_forward = nn.Sequential(
            OrderedDict(
                expand=nn.Linear(options.width, hidden),
                activation=ACTIVATIONS[options.activation](),
                contract=nn.Linear(hidden, options.width),
            )
        )
        self.dropout, self.skip = options.dropout, skip

    def forward(self, tokens: Tensor, mask: Tensor | None, memory: Memory | None = None) -> Tensor:
        """Compute the block: [N, T, width] -> [N, T, width]."""
        tokens = tokens + self._dropped(self.attention(self.norm1(tokens), mask, memory))
        return tokens + self._dropped(self.feed_forward(self.norm2(tokens)))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Drop values, and whole samples' branches (stochastic depth, Huang et al. 2016), in training."""
        if not self.training:
            return branch
        return skipped(functional.dropout(branch, self.dropout), self.skip, training=True)


class TransformerEncoder(nn.Module):
    """Embedding, blocks, mean over the tokens, and a linear layer: [N, ...], [N] lengths or None -> [N, n_outputs].

    Args:
        spec: of the first input.
        options: of the encoder.
        n_outputs: of the answer.
    """

    def __init__(self, spec: InputSpec, options: TransformerOptions, n_outputs: int) -> None:
        super().__init__()
        self.embedding = Embedding(spec, options)
        n_tokens, width = self.embedding.n_tokens, options.width
        self.positions: nn.Parameter | nn.Buffer | None
        match options.positions:
            case "learned":
                self.positions = nn.Parameter(torch.randn(1, n_tokens, width) * 0.02)
            case "sinusoidal":
                self.positions = nn.Buffer(sinusoids(n_tokens, width)[None], persistent=False)
            case _:
                self.positions = None
        self.blocks = nn.ModuleList(
            [
                Block(options, options.stochastic_depth * i / max(options.depth - 1, 1))
                for i in range(options.depth)
            ]
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, n_outputs)
        self.dropout = options.dropout
        self.part = 1 if spec.dtype == "int32" else options.patch
        self.frames = nn.Buffer(torch.arange(spec.shape[0], dtype=torch.float32)[None], persistent=False)
        self.order = nn.Buffer(torch.arange(n_tokens, dtype=torch.float32)[None], persistent=False)
        starts = torch.arange(n_tokens, dtype=torch.float32) * (options.patch if len(spec.shape) == 2 else 1)
        self.starts = nn.Buffer(starts[None], persistent=False)
        unseen = torch.full((1, 1, n_tokens, n_tokens), MASKED).triu(1)
        self.unseen = nn.Buffer(unseen, persistent=False) if options.causal else None

    def encode(self, inputs: Tensor, length: Tensor | None = None) -> Tensor:
        """Return the tokens after the last block, [N, T, width]; those behind the length mean nothing."""
        mask: Tensor | None = self.unseen
        valid = _before(self.starts, length)
        if length is not None and inputs.dim() == 3:
            inputs = inputs * _before(self.frames, length)[:, :, None]
        tokens = self.embedding(inputs)
        if self.positions is not None:
            tokens = tokens + self.positions
        if valid is not None:
            padding = ((valid - 1) * -MASKED)[:, None, None, :]
            mask = padding if mask is None else padding + mask
        tokens = functional.dropout(tokens, self.dropout, self.training)
        for block in self.blocks:
            tokens = block(tokens, mask)
        result: Tensor = self.norm(tokens)
        return result

    @property
    def why_not_streamed(self) -> str:
        """Why tokens can't be taken as they come, empty if they can."""
        return "" if self.unseen is not None else "its tokens see those behind them (causal: false)"

    @property
    def most_frames(self) -> int:
        """Frames, or tokens of text, after which a stream must begin anew."""
        return self.embedding.n_tokens * self.part

    @property
    def state_size(self) -> int:
        """Numbers of the state that `step` carries."""
        return 1 + self.classifier.in_features + sum(self._memory_sizes())

    def _memory_sizes(self) -> list[int]:
        """Return the numbers of the keys and of the values of each block."""
        attentions = [layer for layer in self.modules() if isinstance(layer, Attention)]
        return [
            self.embedding.n_tokens * a.query.out_features for a in attentions for _ in ("keys", "values")
        ]

    def step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take the next frames [N, F, C] or tokens [N, F] and the state [N, S], zeros at first.

        Returns:
            The answer so far, and the state: how many tokens there were, the sum that is read, keys and values.
        """
        n_tokens, width, seen = self.embedding.n_tokens, self.classifier.in_features, state[:, :1]
        tokens = self.embedding(inputs)
        n_new = tokens.shape[1]
        # How far each place is behind each new token; 0 is its own place, and below 0 is what is yet to come.
        behind = (seen + self.order[:, :n_new])[:, :, None] - self.order
        places = (1 - behind.abs()).clamp(min=0.0)
        if self.positions is not None:
            tokens = tokens + places @ self.positions[0]
        mask = ((behind + 1).clamp(0.0, 1.0) - 1)[:, None] * -MASKED
        start = 1 + width
        before = [
            state[:, first:end].reshape(-1, n_tokens, (end - first) // n_tokens)
            for first, end in pairwise(accumulate(self._memory_sizes(), initial=start))
        ]
        memory = Memory(places.transpose(1, 2), before)
        for block in self.blocks:
            tokens = block(tokens, mask, memory)
        total = state[:, 1:start] + self.norm(tokens).sum(dim=1)
        seen = seen + n_new
        after = [seen, total, *(values.flatten(1) for values in memory.after)]
        return self.classifier(total / seen), torch.cat(after, dim=1)

    def forward(self, inputs: Tensor, length: Tensor | None = None) -> Tensor:
        """Answer for whole inputs."""
        tokens, valid = self.encode(inputs, length), _before(self.starts, length)
        if valid is None:
            read = tokens.mean(dim=1)
        else:
            read = (tokens * valid[:, :, None]).sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1.0)
        answer: Tensor = self.classifier(functional.dropout(read, self.dropout, self.training))
        return answer


@overload
def _before(starts: Tensor, length: None) -> None: ...
@overload
def _before(starts: Tensor, length: Tensor) -> Tensor: ...
def _before(starts: Tensor, length: Tensor | None) -> Tensor | None:
    """Return 1.0 for what begins before the end and 0.0 for what is behind it, [N, T]; None without a length."""
    if length is None:
        return None
    # Whole numbers: their difference is at least 1 or at most 0.
    return (length[:, None].to(starts.dtype) - starts).clamp(0.0, 1.0)


def sinusoids(n: int, width: int) -> Tensor:
    """Return sines and cosines of the positions, [n, width] (Vaswani et al. 2017, section 3.5)."""
    angles = torch.arange(n)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


def _n_tokens(spec: InputSpec, patch: int) -> int:
    """Return how many tokens an input makes.

    Raises:
        UsageError: it can't be cut into whole patches.
    """
    if spec.dtype == "int32":
        return spec.shape[0]
    extents = spec.shape[1:] if len(spec.shape) == 3 else spec.shape[:1]
    if len(spec.shape) not in (2, 3) or any(extent % patch for extent in extents):
        raise UsageError(f"an input of shape {list(spec.shape)} can't be cut into whole patches of {patch}")
    return math.prod(extent // patch for extent in extents)


@FAMILIES.register("transformer")
def build_transformer(
    options: str, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]
) -> nn.Module:
    """Build an encoder: pictures [N, C, H, W], sequences [N, T, C] or tokens [N, T] -> [N, n_outputs].

    Raises:
        UsageError: the input can't be cut into whole patches, or the width does not divide among the heads.
    """
    chosen = parse_options(TransformerOptions, options)
    if chosen.width % chosen.heads:
        raise UsageError(f"a width of {chosen.width} does not divide among {chosen.heads} heads")
    if len(inputs) > 2 or any(spec.dtype != "int32" or spec.shape for spec in inputs[1:]):
        raise UsageError("a transformer takes one input, and a length where inputs differ in it")
    return TransformerEncoder(inputs[0], chosen, n_classes_of("a transformer", output_shape))
