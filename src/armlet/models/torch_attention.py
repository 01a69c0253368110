"""torch's own multi-head attention as layers and operators that are pruned, head by head, and quantised."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from armlet.models.attention import additive, by_head, merged, shares

_PARTS = ("query", "key", "value")


class TorchAttention(nn.Module):
    """What a `torch.nn.MultiheadAttention` computes, and answers in the same form.

    queries [N, T, E], keys and values [N, S, ...], or with N second as the layer was made, or without N -> outputs
    [N, T, E], and shares [N, T, S] or None. A query that may attend to nothing attends to everything, where torch gives
    NaN. A state dict of torch's layer is read, too. `embed_dim`, `num_heads`, `batch_first` and `dropout` are torch's.

    Args:
        source: a layer without keys and values of its own, whose weights are copied.
    """

    # torch's encoder layers look for these: without packed weights they call the layer and don't compute in its place.
    in_proj_weight = in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim = source.embed_dim
        self.size: int = source.head_dim
        self.dropout, self.batch_first = source.dropout, source.batch_first
        width, bias, like = source.embed_dim, source.in_proj_bias is not None, source.out_proj.weight
        inputs = width, source.kdim, source.vdim
        self.query, self.key, self.value = (
            nn.Linear(n, width, bias, device=like.device, dtype=like.dtype) for n in inputs
        )
        self.output = nn.Linear(width, width, bias, device=like.device, dtype=like.dtype)
        self.register_load_state_dict_pre_hook(_read_torchs_names)  # type: ignore[no-untyped-call]
        self.load_state_dict(source.state_dict())
        trained = {name: p.requires_grad for name, p in source.named_parameters()}
        for name, parameter in self.named_parameters():
            part, _, kind = name.partition(".")
            theirs = (f"out_proj.{kind}", f"{part[0]}_proj_{kind}", f"in_proj_{kind}")
            own = theirs[:1] if part == "output" else theirs[1:]
            parameter.requires_grad_(next(trained[n] for n in own if n in trained))

    @property
    def num_heads(self) -> int:
        """Heads that have not been pruned."""
        return self.query.out_features // self.size

    def forward(  # noqa: PLR0913 - torch's signature
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: what asks.
            key: what is compared with it.
            value: what is handed on.
            key_padding_mask: [N, S], true for keys that get no attention, or numbers that are added to the scores.
            need_weights: whether the shares are given, too.
            attn_mask: the same for each query and key, [T, S] or [N × heads, T, S].
            average_attn_weights: whether the shares are those of all heads together, else [N, heads, T, S].
            is_causal: says that `attn_mask` is causal; that is applied in any case.

        Raises:
            ValueError: it is said to be causal, and there is no mask.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal says what attn_mask is, and there is none")
        batch = 0 if self.batch_first else 1
        single = query.dim() == 2
        if single:
            query, key, value = (values.unsqueeze(batch) for values in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if batch:
            query, key, value = (values.transpose(0, 1) for values in (query, key, value))
        heads = (by_head(found, self.size) for found in (self.query(query), self.key(key), self.value(value)))
        asked, compared, handed_on = heads
        mask = self._mask(key_padding_mask, attn_mask, query.dtype)
        weights = functional.dropout(shares(asked, compared, mask), self.dropout, self.training)
        outputs: Tensor = self.output(merged(weights @ handed_on))
        outputs = outputs.transpose(0, 1) if batch else outputs
        if average_attn_weights and need_weights:
            weights = weights.mean(dim=1)
        if single:
            outputs, weights = outputs.squeeze(batch), weights.squeeze(0)
        return outputs, weights if need_weights else None

    def _mask(self, keys: Tensor | None, pairs: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to the scores [N, heads, T, S], None if nothing is."""
        padding = None if keys is None else additive(keys, dtype)[:, None, None, :]
        if pairs is None:
            return padding
        mask = additive(pairs, dtype)
        if mask.dim() == 3:
            mask = mask.reshape(-1, self.num_heads, *mask.shape[1:])
        return mask if padding is None else mask + padding


def _read_torchs_names(module: TorchAttention, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Replace the tensors of torch's layer in a state dict by those of its linear layers."""
    for ours, theirs in zip(_PARTS, ("q_proj_weight", "k_proj_weight", "v_proj_weight"), strict=True):
        if prefix + theirs in state:
            state[f"{prefix}{ours}.weight"] = state.pop(prefix + theirs)
    for kind in ("weight", "bias"):
        if f"{prefix}in_proj_{kind}" in state:
            for ours, part in zip(_PARTS, state.pop(f"{prefix}in_proj_{kind}").chunk(3), strict=True):
                state[f"{prefix}{ours}.{kind}"] = part
        if f"{prefix}out_proj.{kind}" in state:
            state[f"{prefix}output.{kind}"] = state.pop(f"{prefix}out_proj.{kind}")
