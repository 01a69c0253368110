"""Pre-training without labels: parts of the input are hidden, and the encoder learns to fill them in.

Source: Devlin et al. 2018, "BERT" (tokens); He et al. 2021, "Masked Autoencoders" (patches).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from armlet.artifacts import InputSpec
from armlet.data.splits import Samples
from armlet.errors import UsageError
from armlet.train.objectives import NETWORK, Batch, Turn, Validation, on_device
from armlet.train.randomness import stream

MASK_TOKEN = 2
"""The token that stands for a hidden one, as the tokenizer has it."""

_PREFIX = "network."


class Encoder(Protocol):
    """A network with what it makes of each part of its input.

    Attributes:
        part: pixels of a patch's side, or frames or tokens of a part.
    """

    part: int

    def encode(self, inputs: Tensor, length: Tensor | None = None) -> Tensor:
        """Return the parts' encodings, [N, parts, width]."""


class Reconstruction(nn.Module):
    """The encoder with a linear layer that guesses what was hidden: inputs -> mean loss of the guesses.

    Args:
        network: the encoder, on its device.
        inputs: what it takes.
        mask: share of the parts that is hidden.

    Raises:
        UsageError: the network encodes no parts.
    """

    def __init__(self, network: nn.Module, inputs: tuple[InputSpec, ...], mask: float) -> None:
        super().__init__()
        if not hasattr(network, "encode"):
            raise UsageError(
                f"a {type(network).__name__} has no encoder of parts to pre-train; leave `pretrain` out"
            )
        self.network, self._mask, self._is_text = network, mask, inputs[0].dtype == "int32"
        device = next(network.parameters()).device
        zeros = [
            torch.zeros(1, *spec.shape, dtype=getattr(torch, spec.dtype), device=device) for spec in inputs
        ]
        with torch.no_grad():
            n_parts, width = self._encoder.encode(*zeros).shape[1:]
        n_values = math.prod(inputs[0].shape) // n_parts
        self.guess = nn.Linear(width, (inputs[0].n_values or 0) if self._is_text else n_values).to(device)

    @property
    def _encoder(self) -> Encoder:
        return cast("Encoder", self.network)

    def forward(self, inputs: Tensor, length: Tensor | None = None) -> Tensor:
        """Hide parts, and return the mean loss of the guesses: cross-entropy of tokens, else squared error."""
        parts = self._cut(inputs)
        hidden = torch.rand(parts.shape[:2], device=inputs.device) < self._mask
        if length is not None:
            starts = torch.arange(parts.shape[1], device=inputs.device) * self._encoder.part
            hidden = hidden & (starts < length[:, None])
        if self._is_text:
            shown = inputs.masked_fill(hidden, MASK_TOKEN)
        else:
            shown = self._join(parts.masked_fill(hidden[:, :, None], 0.0), inputs)
        # At least one is scored: an empty mean is no number.
        hidden[:, 0] |= ~hidden.any(dim=1)
        encoded = self._encoder.encode(shown, length) if length is not None else self._encoder.encode(shown)
        guesses = self.guess(encoded[hidden]).float()
        wanted = parts[hidden]
        if self._is_text:
            return functional.cross_entropy(guesses, wanted[:, 0].long())
        return functional.mse_loss(guesses, wanted)

    def _cut(self, inputs: Tensor) -> Tensor:
        """Return the parts [N, parts, values] of tokens [N, T], sequences [N, T, C] or pictures [N, C, H, W]."""
        n, side = len(inputs), self._encoder.part
        if inputs.dim() == 2:
            return inputs[:, :, None]
        if inputs.dim() == 3:
            return inputs.reshape(n, inputs.shape[1] // side, -1)
        _, channels, height, width = inputs.shape
        cut = inputs.reshape(n, channels, height // side, side, width // side, side)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, (height // side) * (width // side), -1)

    def _join(self, parts: Tensor, like: Tensor) -> Tensor:
        """Return the inputs that `_cut` gave the parts of."""
        if like.dim() == 3:
            return parts.reshape(like.shape)
        n, channels, height, width = like.shape
        side = self._encoder.part
        cut = parts.reshape(n, height // side, width // side, channels, side, side)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(like.shape)


class MaskedReconstruction:
    """Makes the loss of the guesses small; the encoder comes out, the guessing layer does not."""

    rates: Mapping[str, float] = {}

    def __init__(self, network: nn.Module, inputs: tuple[InputSpec, ...], mask: float, seed: int) -> None:
        self._seed = stream(seed, 4)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)
            self.modules: Mapping[str, nn.Module] = {NETWORK: Reconstruction(network, inputs, mask)}

    def turns(self, modules: Mapping[str, nn.Module], batch: Batch) -> Iterator[Turn]:
        """One turn, of encoder and guessing layer."""
        yield NETWORK, lambda: modules[NETWORK](*batch.inputs)

    def validate(self, modules: Mapping[str, nn.Module], samples: Samples) -> Validation:
        """Return the mean loss; the same parts are hidden each time."""
        module = modules[NETWORK]
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(self._seed)
            batches = zip(*(torch.split(x, 512) for x in on_device(samples.inputs, module)), strict=True)
            losses = [(len(batch[0]), float(module(*batch))) for batch in batches]
        loss = sum(n * value for n, value in losses) / len(samples)
        return Validation(loss, "reconstruction_error", loss)

    def result(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The encoder comes out."""
        return {name.removeprefix(_PREFIX): x for name, x in state.items() if name.startswith(_PREFIX)}
