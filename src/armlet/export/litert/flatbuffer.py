"""A .tflite file under construction: tensors, operators and constants, and their bytes.

The same calls in the same order give the same bytes.

Source: the TensorFlow Lite schema, version 3, as ai-edge-litert ships it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as tfl

_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
_BUFFER_ALIGNMENT = 16  # bytes; the schema's force_align, which the generated Python code doesn't follow
_SIGNATURE = "serving_default"
_LARGEST_OLD_CODE = 127  # operators beyond it exist only in the newer, wider field

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Scales:
    """How integers stand for numbers: x = (q - zero_point) × scale.

    Attributes:
        scales: one for the whole tensor, or one for each index of `axis`.
        axis: dimension of the scales; 0 where there is one scale.
    """

    scales: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the file.

    Attributes:
        index: its place in the file.
        shape: as laid out in memory.
        quantization: None for float32 and for indices.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    quantization: Scales | None


class FlatModel:
    """Collects one subgraph."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._buffers: list[bytes] = [b""]  # buffer 0 is by definition empty
        self._codes: list[tuple[int, int]] = []

    @property
    def n_operators(self) -> int:
        """Operators so far."""
        return len(self._operators)

    def add_tensor(self, name: str, shape: Sequence[int], quantization: Scales | None) -> Tensor:
        """Add a value that is computed: float32, or int8 when quantised."""
        kind = tfl.TensorType.FLOAT32 if quantization is None else tfl.TensorType.INT8
        return self._add(name, tuple(shape), kind, 0, quantization)

    def add_constant(self, name: str, values: Array, quantization: Scales | None = None) -> Tensor:
        """Add float32, int32 or int8 values; equal bytes are stored once.

        Raises:
            KeyError: the values have another type.
        """
        kinds = {
            "float32": tfl.TensorType.FLOAT32,
            "int32": tfl.TensorType.INT32,
            "int8": tfl.TensorType.INT8,
        }
        data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
        if data not in self._buffers[1:]:
            self._buffers.append(data)
        place = self._buffers.index(data, 1)
        return self._add(name, values.shape, kinds[values.dtype.name], place, quantization)

    def add_operator(
        self,
        builtin: int,
        version: int,
        inputs: Sequence[Tensor],
        output: Tensor,
        options: Any = None,  # noqa: ANN401 - one of the schema's generated option classes
    ) -> None:
        """Add an operator; `version` is the lowest that knows the types and features used."""
        if (builtin, version) not in self._codes:
            self._codes.append((builtin, version))
        kind = 0
        if options is not None:
            kind = vars(tfl.BuiltinOptions)[type(options).__name__.removesuffix("T")]
        self._operators.append(
            tfl.OperatorT(
                opcodeIndex=self._codes.index((builtin, version)),
                inputs=[tensor.index for tensor in inputs],
                outputs=[output.index],
                builtinOptionsType=kind,
                builtinOptions=options,
            )
        )

    def to_bytes(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bytes:
        """Return the file, with a signature that names its inputs and outputs as their tensors."""
        subgraph = tfl.SubGraphT(
            tensors=self._tensors,
            inputs=[tensor.index for tensor in inputs],
            outputs=[tensor.index for tensor in outputs],
            operators=self._operators,
            name="main",
        )
        signature = tfl.SignatureDefT(
            inputs=_by_name(inputs), outputs=_by_name(outputs), signatureKey=_SIGNATURE, subgraphIndex=0
        )
        model = tfl.ModelT(
            version=_SCHEMA_VERSION,
            operatorCodes=[_operator_code(builtin, version) for builtin, version in self._codes],
            subgraphs=[subgraph],
            description="armlet",
            buffers=[_Buffer(data) for data in self._buffers],
            signatureDefs=[signature],
        )
        builder = flatbuffers.Builder(sum(map(len, self._buffers)) + 4096)
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())

    def _add(
        self, name: str, shape: tuple[int, ...], kind: int, place: int, quantization: Scales | None
    ) -> Tensor:
        parameters = None
        if quantization is not None:
            parameters = tfl.QuantizationParametersT(
                scale=np.array(quantization.scales, np.float32),
                zeroPoint=np.full(len(quantization.scales), quantization.zero_point, np.int64),
                quantizedDimension=quantization.axis,
            )
        self._tensors.append(
            tfl.TensorT(shape=list(shape), type=kind, buffer=place, name=name, quantization=parameters)
        )
        return Tensor(len(self._tensors) - 1, name, shape, quantization)


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Packs as the schema's Buffer, with its data aligned as the schema asks."""

    data: bytes

    def Pack(self, builder: Any) -> int:  # noqa: ANN401 - the generated code calls it so
        vector = None
        if self.data:
            builder.StartVector(1, len(self.data), _BUFFER_ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            vector = builder.EndVector()
        tfl.BufferStart(builder)
        if vector is not None:
            tfl.BufferAddData(builder, vector)
        end: int = tfl.BufferEnd(builder)
        return end


def _operator_code(builtin: int, version: int) -> Any:  # noqa: ANN401 - a class of the generated code
    old = min(builtin, _LARGEST_OLD_CODE)
    return tfl.OperatorCodeT(deprecatedBuiltinCode=old, builtinCode=builtin, version=version)


def _by_name(tensors: Sequence[Tensor]) -> list[Any]:
    return [tfl.TensorMapT(name=tensor.name, tensorIndex=tensor.index) for tensor in tensors]
