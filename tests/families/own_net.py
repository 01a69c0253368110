"""Networks as a user might write them: what the tests of the family `module` build."""

import torch
from torch import Tensor, nn


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
