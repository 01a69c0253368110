"""Networks as a user might write them: what the tests of the family `module` build."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        inner = self.activation(self.norm1(self.conv1(x)))
        return self.activation(x + self.norm2(self.conv2(inner)))


class Net(nn.Module):
    """Pictures [N, 1, H, W] -> logits [N, n_classes]."""

    def __init__(self, width: int = 16, n_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.block = Block(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.last = Block(2 * width)
        self.gate = nn.Conv2d(2 * width, 2 * width, 1)
        self.classifier = nn.Linear(2 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the network."""
        x = self.last(self.down(self.block(self.stem(x))).relu())
        x = self.gate(x.mean(dim=(2, 3), keepdim=True)).sigmoid() * x
        return self.classifier(x.mean(dim=(2, 3)))


class Sequences(nn.Module):
    """Sequences [N, T, n_inputs] -> answers [N, n_outputs], from what torch's own recurrent layers say at the end."""

    def __init__(
        self, cell: str, n_inputs: int, hidden: int, n_outputs: int, bidirectional: bool = False
    ) -> None:
        super().__init__()
        kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[cell]
        self.recurrent = kind(n_inputs, hidden, 2, batch_first=True, bidirectional=bidirectional)
        self.classifier = nn.Linear((4 if bidirectional else 2) * hidden, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the network."""
        outputs, states = self.recurrent(x)
        hidden = states[0] if isinstance(states, tuple) else states
        last = hidden[-2:].transpose(0, 1).flatten(1) if self.recurrent.bidirectional else hidden[-1]
        return self.classifier(torch.cat([outputs.mean(dim=1), last], dim=1))


class Pooled(nn.Module):
    """Sequences [N, T, n_inputs] and lengths [N] -> answers [N, n_outputs], from the mean of the frames that count."""

    def __init__(self, n_frames: int, n_inputs: int, width: int, n_outputs: int) -> None:
        super().__init__()
        self.expand = nn.Linear(n_inputs, width)
        self.classifier = nn.Linear(width, n_outputs)
        self.register_buffer("places", torch.arange(n_frames).float())

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        """Compute the network."""
        valid = (length.unsqueeze(1).float() - self.places).clamp(min=0, max=1)
        total = (valid.unsqueeze(-1) * self.expand(x).relu()).sum(dim=1, keepdim=True)
        mean = total / valid.sum(dim=1).clamp(min=1).reshape(-1, 1, 1)
        return self.classifier(mean.squeeze(1))


class Encoder(nn.Module):
    """Sequences [N, T, n_inputs], maybe of different lengths [N] -> answers [N, n_outputs], by torch's own encoder."""

    def __init__(
        self,
        n_inputs: int,
        width: int,
        heads: int,
        n_outputs: int,
        n_tokens: int = 10,
        depth: int = 1,
        causal: bool = False,
        norm_first: bool = True,
        frames_first: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(n_inputs, width)
        self.positions = nn.Parameter(0.5 * torch.randn(1, n_tokens, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, 0.1, "gelu", batch_first=not frames_first, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        for weight in (p for p in self.encoder.parameters() if p.dim() > 1):
            nn.init.xavier_uniform_(weight)  # torch makes all layers copies of one
        self.classifier = nn.Linear(width, n_outputs)
        self.mask = (
            nn.Buffer(nn.Transformer.generate_square_subsequent_mask(n_tokens), persistent=False)
            if causal
            else None
        )
        self.order = nn.Buffer(torch.arange(n_tokens)[None], persistent=False)
        self.frames_first = frames_first

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Compute the network."""
        tokens = self.embed(x) + self.positions
        hidden = None if length is None else self.order >= length[:, None]
        tokens = tokens.transpose(0, 1) if self.frames_first else tokens
        tokens = self.encoder(tokens, mask=self.mask, src_key_padding_mask=hidden)
        tokens = tokens.transpose(0, 1) if self.frames_first else tokens
        return self.classifier(tokens.mean(dim=1) if length is None else tokens[:, 0])


class Attends(nn.Module):
    """Sequences [N, T, n_inputs] -> answers [N, n_outputs], by torch's function for attention."""

    def __init__(
        self, n_inputs: int, width: int, heads: int, n_outputs: int, causal: bool = False, view: str = "size"
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(n_inputs, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mixed, self.classifier = nn.Linear(width, width), nn.Linear(width, n_outputs)
        self.shape = {"size": (-1, width // heads), "heads": (heads, -1), "both": (heads, width // heads)}[
            view
        ]
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        """Compute the network."""
        tokens = functional.silu(self.embed(x))
        n, t, _ = tokens.shape
        query, key, value = (
            layer(tokens).view(n, t, *self.shape).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        found = tokens + self.mixed(found.transpose(1, 2).reshape(n, t, -1))
        return self.classifier(found.mean(dim=1))


class Filled(nn.Module):
    """Sequences [N, T, n_inputs], maybe of different lengths [N] -> answers [N, n_outputs]: scores filled by a mask."""

    def __init__(
        self, n_inputs: int, width: int, heads: int, n_outputs: int, fill: str = "-inf", where: bool = False
    ) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(n_inputs, width) for _ in range(3))
        self.mixed, self.classifier = nn.Linear(width, width), nn.Linear(width, n_outputs)
        self.size, self.fill, self.where = width // heads, float(fill), where
        self.seen = nn.Buffer(torch.ones(10, 10).tril(), persistent=False)
        self.order = nn.Buffer(torch.arange(10)[None], persistent=False)

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Compute the network."""
        n, t, _ = x.shape
        query, key, value = (
            layer(x).view(n, t, -1, self.size).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-2, -1) / self.size**0.5
        hidden = self.seen == 0 if length is None else (self.order >= length[:, None])[:, None, None, :]
        chosen = torch.where(~hidden, scores, self.fill)
        scores = chosen if self.where else scores.masked_fill(hidden, self.fill)
        found = (functional.softmax(scores, dim=-1) @ value).transpose(1, 2).reshape(n, t, -1)
        return self.classifier(self.mixed(found)[:, 0 if length is not None else -1])


class Highest(nn.Module):
    """Sequences [N, T, n_inputs] of different lengths [N] -> answers [N, n_outputs], by numbers that are compared."""

    def __init__(self, n_inputs: int, width: int, n_outputs: int) -> None:
        super().__init__()
        self.expand, self.gate = nn.Linear(n_inputs, width), nn.Linear(n_inputs, width)
        self.classifier = nn.Linear(width, n_outputs)
        self.order = nn.Buffer(torch.arange(10)[None], persistent=False)

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        """Compute the network."""
        found, gate = self.expand(x), self.gate(x)
        found = torch.where((found > gate) & (gate <= 0.5), found, 0.1 * gate)
        behind = (self.order >= length[:, None]).unsqueeze(-1)
        return self.classifier(found.masked_fill(behind, -9.0).amax(dim=1))
