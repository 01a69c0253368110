"""A network in the form that torch itself reads without armlet's sources: a `.pt2` file."""

from __future__ import annotations

from pathlib import Path

import torch

from armlet.analysis.graph import trace
from armlet.models.network import Network, executable

PT2_FILE = "model.pt2"


def write_pt2(network: Network, folder: Path) -> Path:
    """Write `model.pt2`, the network's exported program with a free batch size, and return its path.

    A quantised network's program computes with quantize and dequantize operators, in float arithmetic.
    """
    path = folder / PT2_FILE
    program = trace(executable(network).eval(), network.architecture.inputs).program
    torch.export.save(program, path)
    return path
