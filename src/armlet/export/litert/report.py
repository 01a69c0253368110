"""What is known of a .tflite file that armlet wrote."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LitertReport:
    """What a .tflite file holds.

    Attributes:
        n_bytes: size of the file.
        n_operators: operators, those that only move data among them.
        quantized: whether it computes on int8.
        float_layers: names of the layers of a quantised network that compute on float32; empty for a float one.
    """

    n_bytes: int
    n_operators: int
    quantized: bool
    float_layers: tuple[str, ...]
