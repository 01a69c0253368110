"""armlet's normal form of a network: a straight list of typed layers, under the names of the ONNX graph.

Relax is not the form that layers are recognized in, because TVM's ONNX import drops the nodes' names, and every later
report speaks of layers by name. Operators without a kernel of their own go through that import one by one
(`armlet.compile.kernels.generic`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from armlet.compile.frontend.values import NO_CLAMP, Array, Clamp, Constant, QuantizedTensor, Tensor

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, eq=False)
class Conv2d:
    """Convolution over the last two of four dimensions.

    Attributes:
        weight: [outputs, inputs / groups, kernel height, kernel width].
        bias: [outputs].
        padding: top, left, bottom, right.
        dynamic: whether the input is quantised while the program runs; the weight is of integers then.
    """

    weight: Constant
    bias: Constant
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    groups: int
    clamp: Clamp = NO_CLAMP
    dynamic: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Matrix product with a constant: weight [outputs, inputs], bias [outputs].

    Attributes:
        dynamic: whether the input is quantised while the program runs; the weight is of integers then.
    """

    weight: Constant
    bias: Constant
    clamp: Clamp = NO_CLAMP
    dynamic: bool = False


@dataclass(frozen=True, slots=True)
class MatMul:
    """Matrix products of two values, one for each of the leading dimensions: factor × [..., M, K] × [..., K, N]."""

    factor: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Softmax:
    """exp(x) / Σ exp(x) over the last dimension, of x plus a mask where there is a second input or a constant one.

    Attributes:
        mask_rows: rows of the mask, which are added to those of x over and over; 0 without a mask.
        mask: [mask_rows, n], None where it is an input.
        by_flag: [2, mask_rows, n], the mask of columns whose flag, the second input then [n], is 0, and that of those
            whose flag is 1; None otherwise.
    """

    mask_rows: int = 0
    mask: Array | None = None
    by_flag: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm:
    """gain × (x - mean) / √(variance + epsilon) + bias over the last dimension (Ba et al. 2016).

    Attributes:
        gain, bias: [n], or [1] for all.
    """

    gain: Array
    bias: Array
    epsilon: float


@dataclass(frozen=True, slots=True)
class Multiply:
    """Product of two values of one shape, or of [1, C, H, W] and [1, C, 1, 1], in this order."""


@dataclass(frozen=True, slots=True, eq=False)
class AddConstant:
    """Sum of a value and a constant of its shape, such as the positions of tokens."""

    values: Array


@dataclass(frozen=True, slots=True, eq=False)
class PRelu:
    """x where it is positive, and slope × x elsewhere, with a slope for each index of a dimension (He et al. 2015).

    Attributes:
        slopes: float32, one for each index.
        axis: the dimension that they are along.
    """

    slopes: Array
    axis: int


@dataclass(frozen=True, slots=True)
class RowMean:
    """Mean over the last dimension but one: [1, T, C] -> [1, C] or [1, 1, C]."""


@dataclass(frozen=True, slots=True, eq=False)
class Flags:
    """int32 [1] -> int8 [T]: 1 for each token that starts before this length, 0 for the others.

    Attributes:
        starts: int32 [T].
    """

    starts: Array


@dataclass(frozen=True, slots=True)
class Hide:
    """A value [..., T, C], int8, where the flag [T] of a token is 1, and zero where it is 0."""


@dataclass(frozen=True, slots=True)
class CountedMean:
    """The sum over T of a value [1, T, C], int8, over the number of flags [n] that are 1, or over an int32 number [1].

    Attributes:
        most: the largest such number; the least is 1.
    """

    most: int


@dataclass(frozen=True, slots=True)
class Add:
    """Sum of two values of one shape."""

    clamp: Clamp = NO_CLAMP


@dataclass(frozen=True, slots=True)
class Limit:
    """A clamp that stands alone."""

    clamp: Clamp


@dataclass(frozen=True, slots=True)
class Pool:
    """Maximum or mean over windows of the last two of four dimensions.

    Attributes:
        kind: "max_pool2d" or "avg_pool2d"; the mean counts padded elements.
        padding: top, left, bottom, right.
    """

    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Quantize:
    """ONNX QuantizeLinear to int8, one scale for the tensor."""

    to: QuantizedTensor


@dataclass(frozen=True, slots=True)
class Dequantize:
    """ONNX DequantizeLinear from int8, one scale for the tensor."""

    origin: QuantizedTensor


@dataclass(frozen=True, slots=True)
class Range:
    """Scale and zero point of the range of a value, [2] float32."""


@dataclass(frozen=True, slots=True)
class QuantizeBy:
    """float32 to int8, with the scale and the zero point that a `Range` found."""


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same elements in the same order under another shape."""


@dataclass(frozen=True, slots=True)
class Transpose:
    """Dimensions in another order: output dimension i is input dimension order[i]."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """Values one after the other along `axis` (not negative)."""

    axis: int


@dataclass(frozen=True, slots=True, eq=False)
class Recurrent:
    """A recurrent layer over all its steps (ONNX LSTM, GRU, RNN); inputs are X [T, 1, I], then `given` in order.

    Attributes:
        cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        direction: "forward", "reverse" or "bidirectional".
        weight: [D, gates × H, I], gates in ONNX's order.
        recurrent: [D, gates × H, H], or two factors [D, gates × H, P] and [D, P, H] of it.
        bias: [D, gates × H], what is added to the input's share.
        recurrent_bias: [D, gates × H], what is added to the recurrent product.
        given: which further inputs there are: "length" [1] int32, "h" and "c" [D, 1, H].
        parts: what is computed, one after the other: "y" [T, D, 1, H], "h" and "c" [D, 1, H].
        quantized: `weight` and `recurrent` as the int8 numbers that the file has, a scale for each row of a direction;
            None where it has others.
    """

    cell: str
    direction: str
    weight: Array
    recurrent: tuple[Array, ...]
    bias: Array
    recurrent_bias: Array
    given: tuple[str, ...]
    parts: tuple[str, ...]
    quantized: tuple[Constant, Constant] | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Pixels apart by `stride`, zeros between them, and a border of zeros: what a transposed convolution slides over.

    Attributes:
        padding: top, left, bottom, right.
    """

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Enlarge:
    """Each pixel repeated in height and in width."""

    factor: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """Rows of a constant table [n, width], one for each integer of the input; those out of range give row 0."""

    table: Constant


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Any function of one int8 number: the result for -128, -127, ..., 127, [256] int8."""

    values: Array


@dataclass(frozen=True, slots=True)
class Convert:
    """The same numbers, rounded to the nearest, in the output's element type."""


@dataclass(frozen=True, slots=True)
class Recenter:
    """uint8 as int8, 128 less, or int8 as uint8, 128 more."""


@dataclass(frozen=True, slots=True)
class Part:
    """The elements of a flat value from `start` on."""

    start: int


@dataclass(frozen=True, slots=True, eq=False)
class Generic:
    """An operator without a kernel of its own.

    Attributes:
        node: the ONNX node.
        constants: its constant inputs by name.
        elementwise: whether each output element depends only on the input elements at its place, up to broadcasting.
        opset: version of the ONNX operators that `node` follows.
    """

    node: onnx.NodeProto
    constants: Mapping[str, Array]
    elementwise: bool
    opset: int


Op: TypeAlias = (
    Conv2d
    | Dense
    | MatMul
    | Softmax
    | LayerNorm
    | Multiply
    | AddConstant
    | PRelu
    | RowMean
    | Flags
    | Hide
    | CountedMean
    | Add
    | Limit
    | Pool
    | Quantize
    | Dequantize
    | Range
    | QuantizeBy
    | Reshape
    | Transpose
    | Concat
    | Recurrent
    | Part
    | Convert
    | Recenter
    | Lookup
    | Table
    | Spread
    | Enlarge
    | Generic
)


@dataclass(frozen=True, slots=True)
class Integer:
    """How a layer's tensors are quantized, for a layer that computes in integers."""

    inputs: tuple[QuantizedTensor, ...]
    output: QuantizedTensor


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One operation on named values.

    Attributes:
        name, kind: of the ONNX node, the latter its operator, for messages.
        integer: set where the layer computes in integers.
        joined: names of further ONNX nodes that it does, too.
    """

    name: str
    kind: str
    op: Op
    inputs: tuple[str, ...]
    output: str
    integer: Integer | None = None
    joined: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of all ONNX nodes that it does."""
        return (self.name, *self.joined)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A network: layers in an order in which they can run, and the values between them."""

    layers: tuple[Layer, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def uses(self) -> dict[str, int]:
        """Return how many layers and outputs read each value."""
        read = [*(name for layer in self.layers for name in layer.inputs), *self.outputs]
        return dict.fromkeys(self.tensors, 0) | Counter(read)
