"""What is found: groups of channels that may be removed, and those that may not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["channels", "units", "hidden units", "heads"]
"""What a group's channels are, from the most general word to the most special one."""


@dataclass(frozen=True, slots=True)
class Member:
    """One dimension of one parameter or buffer.

    Attributes:
        tensor: its name in the module.
        dim: the dimension that is sliced.
        indices: for each channel of the group, the indices along `dim` that belong to it, maybe none.
        reads: whether it is what a layer multiplies the channels with, rather than what computes or normalises them.
    """

    tensor: str
    dim: int
    indices: tuple[tuple[int, ...], ...]
    reads: bool


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that are ranked against each other; each is removed from all members or from none.

    Attributes:
        name: the first layer that computes the channels.
        layers: all layers that compute them.
        n_channels: how many there are.
        unit: what each of them is.
        least: how many of them stay: two where they are groups of a convolution, which with one left would be an
            ordinary convolution, and shapes do not tell which of the two a layer was.
    """

    name: str
    layers: tuple[str, ...]
    n_channels: int
    members: tuple[Member, ...]
    unit: Unit
    least: int = 1

    @property
    def weights(self) -> tuple[Member, ...]:
        """The members that are weights, not biases or statistics."""
        return tuple(member for member in self.members if member.tensor.endswith("weight"))


@dataclass(frozen=True, slots=True)
class FixedGroup:
    """Channels that can't be removed, and why."""

    name: str
    layers: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ChannelGroups:
    """All groups of a network, in graph order."""

    prunable: tuple[ChannelGroup, ...]
    fixed: tuple[FixedGroup, ...]
