"""Layers as products of smaller ones, which stand in their place under their name.

The factors of `classifier` are `classifier.0` and `classifier.1`: their tensors' names and shapes say all that is
needed to build them again from the layer that they replace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

Whole = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
"""What may become a product."""

Shape = tuple[int, ...]


class Factors(nn.Sequential):
    """Factors of a linear layer or of a convolution, one behind the other; all but the last have no bias."""

    @property
    def in_features(self) -> int:
        """Inputs of the product of linear layers."""
        return self.get_parameter("0.weight").shape[1]

    @property
    def out_features(self) -> int:
        """Outputs of the product of linear layers."""
        return self.get_parameter(f"{len(self) - 1}.weight").shape[0]


def factors_of(layer: Whole, shapes: Sequence[Shape]) -> Factors:
    """Return freshly drawn factors that together have the geometry of a layer.

    Along each axis the first factor whose kernel is as long as the layer's takes the layer's stride, padding and
    dilation; the others are of length 1 there. That is exact: a factor without bias makes padding of padding. A factor
    that sees fewer channels at a time than enter it is one in groups.

    Args:
        layer: is not changed; its padding is of zeros.
        shapes: of the factors' weights: two of a linear layer, two to four of a convolution.
    """
    if isinstance(layer, nn.Linear):
        parts: list[nn.Module] = [nn.Linear(n_in, n_out, bias=False) for n_out, n_in in shapes[:-1]]
        return Factors(*parts, nn.Linear(shapes[-1][1], shapes[-1][0], bias=layer.bias is not None))
    if isinstance(layer, nn.ConvTranspose2d):
        first, (before, after, *_), last = shapes
        middle = nn.ConvTranspose2d(
            before, after, _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding),
            _pair(layer.output_padding), bias=False, dilation=_pair(layer.dilation),
        )  # fmt: skip
        ends = [
            nn.Conv2d(n_in, n_out, 1, bias=bias)
            for (n_out, n_in, *_), bias in ((first, False), (last, layer.bias is not None))
        ]
        return Factors(ends[0], middle, ends[1])
    parts, taken, entering = [], [False, False], shapes[0][1]
    for number, (n_out, n_in, *kernel) in enumerate(shapes):
        takes = [kernel[axis] == layer.kernel_size[axis] and not taken[axis] for axis in (0, 1)]
        taken = [was or now for was, now in zip(taken, takes, strict=True)]
        geometry = [
            tuple(value if now else default for value, now in zip(_pair(values), takes, strict=True))
            for values, default in ((layer.stride, 1), (layer.padding, 0), (layer.dilation, 1))
        ]
        stride, padding, dilation = map(_pair, geometry)
        bias = number == len(shapes) - 1 and layer.bias is not None
        groups = entering // n_in
        parts.append(nn.Conv2d(entering, n_out, _pair(kernel), stride, padding, dilation, groups, bias=bias))
        entering = n_out
    return Factors(*parts)


def shapes_of_factors(name: str, tensors: Mapping[str, Tensor]) -> tuple[Shape, ...]:
    """Return the shapes of the weights of the factors of a layer, none where it is whole."""
    shapes: list[Shape] = []
    if f"{name}.weight" in tensors:
        return ()
    while (weight := tensors.get(f"{name}.{len(shapes)}.weight")) is not None:
        shapes.append(tuple(weight.shape))
    return tuple(shapes)


def _pair(values: object) -> tuple[int, int]:
    """Return what torch keeps as two numbers, or gave as a list of two."""
    if not isinstance(values, tuple | list):
        raise TypeError(f"{values!r} is no pair: padding by name can't be shared out")
    return int(values[0]), int(values[1])
