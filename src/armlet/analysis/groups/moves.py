"""Rules of operators without weights: where channels go, and which of them meet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from armlet.analysis.graph import arguments, aten, shape_of
from armlet.analysis.groups.tracker import Channels, Tracker


def keep(tracker: Tracker, node: Node) -> bool:
    """An operator that leaves every position where it is."""
    if (channels := tracker.values.get(arguments(node)[0])) is not None:
        tracker.values[node] = channels
    return True


def nothing(tracker: Tracker, node: Node) -> bool:
    """An operator that only checks."""
    return True


def elementwise(tracker: Tracker, node: Node) -> bool:
    """Rule 5; dimensions are aligned from the right, as broadcasting does."""
    rank = len(shape_of(node))
    operands = [n for n in arguments(node) if isinstance(n, Node) and hasattr(n.meta.get("val"), "shape")]
    tracked = [n for n in operands if n in tracker.values]
    if not tracked:
        return True
    from_right = {tracker.values[n].dim - len(shape_of(n)) for n in tracked}
    first = tracker.values[tracked[0]]
    if len(from_right) > 1 or any(len(tracker.values[n].ids) != len(first.ids) for n in tracked):
        return False
    (position,) = from_right
    for operand in operands:
        shape = shape_of(operand)
        if operand in tracker.values:
            tracker.join(first.ids, tracker.values[operand].ids)
        elif len(shape) >= -position and shape[position] != 1:
            name = tracker.traced.tensor_name(operand)
            if name is None or name not in tracker.traced.program.state_dict:
                return False  # a value, or a buffer that is made anew whenever the network is built
            tracker.tie(name, len(shape) + position, first.ids)
    tracker.values[node] = Channels(rank + position, first.ids)
    return True


def product(tracker: Tracker, node: Node) -> bool:
    """Rule 8: matrices that are multiplied one by one, as the heads of an attention."""
    sources = [n for n in node.all_input_nodes if n in tracker.values]
    if not sources:
        return True
    rank, dims = len(shape_of(node)), {tracker.values[n].dim for n in sources}
    ranks = {len(shape_of(n)) for n in node.all_input_nodes}
    if len(sources) < 2 or len(dims) > 1 or ranks != {rank} or max(dims) >= rank - 2:
        return False
    first, *others = (tracker.values[n] for n in sources)
    for other in others:
        tracker.join(first.ids, other.ids)
    tracker.heads.update(first.ids.tolist())
    tracker.values[node] = first
    return True


def over_one_dim(tracker: Tracker, node: Node) -> bool:
    """Softmax: channels are followed past it, not through it."""
    channels = tracker.values.get(arguments(node)[0])
    rank = len(shape_of(node))
    return channels is None or (channels.dim != arguments(node)[1] % rank and keep(tracker, node))


def cat(tracker: Tracker, node: Node) -> bool:
    """Rule 6."""
    sources = arguments(node)[0]
    rank = len(shape_of(node))
    dim = (arguments(node)[1] if len(arguments(node)) > 1 else 0) % rank
    dims = {tracker.values[n].dim for n in sources if n in tracker.values}
    if not dims:
        return True
    if len(dims) > 1:
        return False
    (tracked,) = dims
    if dim == tracked:
        tracker.values[node] = Channels(dim, np.concatenate([tracker.numbers(n, tracked) for n in sources]))
        return True
    tracker.values[node] = _side_by_side(tracker, sources, tracked)
    return True


def stack(tracker: Tracker, node: Node) -> bool:
    """Values of one shape along a new dimension: each channel is one of all of them."""
    sources = [n for n in arguments(node)[0] if n in tracker.values]
    if not sources:
        return True
    at = (arguments(node)[1] if len(arguments(node)) > 1 else 0) % len(shape_of(node))
    dims = {tracker.values[n].dim for n in sources}
    if len(dims) > 1:
        return False
    tracker.values[node] = _widened(_side_by_side(tracker, arguments(node)[0], *dims), at)
    return True


def unsqueeze(tracker: Tracker, node: Node) -> bool:
    """A new dimension of 1; a view to the same shape may be that of a single head, whose size is fixed (rule 7)."""
    if (channels := tracker.values.get(arguments(node)[0])) is not None:
        at = arguments(node)[1] % len(shape_of(node))
        tracker.values[node] = _widened(channels, at)
    return True


def _side_by_side(tracker: Tracker, sources: Sequence[Node], dim: int) -> Channels:
    """Make each channel one of all of the sources, which lie next to each other along another dimension than `dim`."""
    first, *others = (tracker.numbers(n, dim) for n in sources)
    for other in others:
        tracker.join(first, other)
    return Channels(dim, first)


def _widened(channels: Channels, at: int) -> Channels:
    """Return where channels are once there is a new dimension `at`."""
    return Channels(channels.dim + (at <= channels.dim), channels.ids)


def split(tracker: Tracker, node: Node) -> bool:
    """Parts of one value; where they are parts of the channels, those at one place of each stay or go together."""
    channels = tracker.values.get(arguments(node)[0])
    if channels is None:
        return True
    extents = [int(value.shape[channels.dim]) for value in node.meta["val"]]
    dim = (arguments(node)[2] if len(arguments(node)) > 2 else 0) % len(shape_of(arguments(node)[0]))
    if dim != channels.dim:
        tracker.results[node] = (channels,) * len(extents)
        return True
    if len(set(extents)) > 1:
        return False
    parts = np.split(channels.ids, len(extents))
    for part in parts[1:]:
        tracker.join(parts[0], part)
    tracker.results[node] = tuple(Channels(dim, part) for part in parts)
    return True


def unbind(tracker: Tracker, node: Node) -> bool:
    """Each place of another dimension than the channels'."""
    channels = tracker.values.get(arguments(node)[0])
    if channels is None:
        return True
    dim = (arguments(node)[1] if len(arguments(node)) > 1 else 0) % len(shape_of(arguments(node)[0]))
    if dim == channels.dim:
        return False
    part = Channels(channels.dim - (dim < channels.dim), channels.ids)
    tracker.results[node] = (part,) * len(node.meta["val"])
    return True


def glu(tracker: Tracker, node: Node) -> bool:
    """A half of the channels, times the sigmoid of the other half."""
    channels = tracker.values.get(arguments(node)[0])
    if channels is None:
        return True
    if (arguments(node)[1] if len(arguments(node)) > 1 else -1) % len(shape_of(node)) != channels.dim:
        return keep(tracker, node)
    values, gates = np.split(channels.ids, 2)
    tracker.join(values, gates)
    tracker.values[node] = Channels(channels.dim, values)
    return True


def pad(tracker: Tracker, node: Node) -> bool:
    """Padding of other dimensions than the channels'; it is given from the last dimension on, two ends of each."""
    channels = tracker.values.get(arguments(node)[0])
    padded = len(arguments(node)[1]) // 2
    return channels is None or (channels.dim < len(shape_of(node)) - padded and keep(tracker, node))


def select(tracker: Tracker, node: Node) -> bool:
    """One place of another dimension than the channels'."""
    channels = tracker.values.get(arguments(node)[0])
    if channels is None:
        return True
    dim = arguments(node)[1] % len(shape_of(arguments(node)[0]))
    if dim == channels.dim:
        return False
    tracker.values[node] = Channels(channels.dim - (dim < channels.dim), channels.ids)
    return True


def pool(tracker: Tracker, node: Node) -> bool:
    """Pooling and resizing move within the dimensions behind the channels."""
    channels = tracker.values.get(arguments(node)[0])
    return channels is None or (channels.dim <= 1 and keep(tracker, node))


def reduce(tracker: Tracker, node: Node) -> bool:
    """A mean or a sum over other dimensions than the channels'."""
    channels = tracker.values.get(arguments(node)[0])
    if channels is None:
        return True
    rank = len(shape_of(arguments(node)[0]))
    over = {d % rank for d in arguments(node)[1] or range(rank)}
    if channels.dim in over:
        return False
    keeps = arguments(node)[2] if len(arguments(node)) > 2 else False
    dim = channels.dim if keeps else channels.dim - sum(d < channels.dim for d in over)
    tracker.values[node] = Channels(dim, channels.ids)
    return True


def cut(tracker: Tracker, node: Node) -> bool:
    """A slice along any dimension."""
    channels = tracker.values.get(arguments(node)[0])
    if channels is None:
        return True
    given: list[Any] = list(arguments(node)[1:])
    dim, start, end, step = given + [0, None, None, 1][len(given) :]
    if any(isinstance(limit, Node) for limit in (start, end, step)):
        return False
    whole = dim % len(shape_of(node)) != channels.dim
    ids = channels.ids if whole else channels.ids[start:end:step]
    tracker.values[node] = Channels(channels.dim, ids)
    return True


def permute(tracker: Tracker, node: Node) -> bool:
    """Dimensions change places."""
    channels = tracker.values.get(arguments(node)[0])
    if channels is None:
        return True
    rank = len(shape_of(node))
    if node.target is aten.transpose.int:
        order = list(range(rank))
        a, b = arguments(node)[1], arguments(node)[2]
        order[a], order[b] = order[b], order[a]
    else:
        order = [d % rank for d in arguments(node)[1]]
    tracker.values[node] = Channels(order.index(channels.dim), channels.ids)
    return True


def reshape(tracker: Tracker, node: Node) -> bool:
    """Rule 7: find the output dimension that the tracked one went into, whole or as the first of its parts."""
    channels = tracker.values.get(arguments(node)[0])
    if channels is None:
        return True
    before, after = list(shape_of(arguments(node)[0])), list(shape_of(node))
    if before[0] != after[0] or channels.dim == 0:
        return False
    inner = [int(n) for n in before[1:]], [int(n) for n in after[1:]]
    parts = _parts(*inner, channels.dim - 1)
    if parts is not None:
        rows = channels.ids.reshape(inner[1][parts], -1)
        for row in rows:
            tracker.join_all(row)
        tracker.values[node] = Channels(parts + 1, rows[:, 0])
        return True
    spread = np.zeros(inner[0], np.int64)
    spread += np.expand_dims(channels.ids, tuple(range(1, len(before) - channels.dim)))
    moved = spread.reshape(inner[1])
    # The place of a single channel, as that of an attention's last head, says more than its number does.
    front = math.prod(inner[0][: channels.dim - 1])
    for dim in sorted(range(moved.ndim), key=lambda dim: math.prod(inner[1][:dim]) != front):
        lines = np.moveaxis(moved, dim, 0).reshape(moved.shape[dim], -1)
        if (lines == lines[:, :1]).all():
            tracker.values[node] = Channels(dim + 1, lines[:, 0])
            return True
    return False


def _parts(before: list[int], after: list[int], dim: int) -> int | None:
    """Return the first of the dimensions that one dimension is split into, None where it is not split."""
    front, extent = math.prod(before[:dim]), before[dim]
    for start in range(len(after)):
        if math.prod(after[:start]) != front:
            continue
        for end in range(start + 2, len(after) + 1):
            if math.prod(after[start:end]) == extent and after[start] < extent:
                return start if math.prod(after[end:]) == math.prod(before[dim + 1 :]) else None
    return None
