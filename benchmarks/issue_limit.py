"""How near the innermost loops of matrix products are to what a core's multipliers do: shares of the issue limit.

    python benchmarks/issue_limit.py run       # every layer and board; a minute
    python benchmarks/issue_limit.py table     # docs/performance.md's table, from kept results

The kernel of a layer is compiled for a board, and the loop in it that multiplies is costed by LLVM's model of the core.
The limit is what the model says of its multiplications alone (fmla, sdot, smull and smlal, with sadalp): the cycles of
the busiest unit. The loop can't take fewer; what it takes more is loads that hold it up and waiting for results.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import keeping
import latency
import tables
from armlet.bench.cycles import attributes_of
from armlet.bench.llvm import cost_blocks, disassembled, find_llvm
from armlet.compile.emit.kernels import build_kernels
from armlet.compile.kernels import conv2d
from armlet.compile.kernels.epilogue import FloatClamp, Requantize
from armlet.compile.kernels.loops import vector_of
from armlet.spec.load import load_target
from armlet.spec.target import Target
from armlet.units import format_count

RESULTS = latency.ROOT / "benchmarks" / "results" / "issue_limit"
BOARDS = ("raspberry-pi-4", "raspberry-pi-5")
# Rows or pixels, inputs, outputs.
LAYERS = {
    "1×1 convolution, 28×28, 128 to 128": (784, 128, 128),
    "1×1 convolution, 14×14, 512 to 512": (196, 512, 512),
    "1×1 convolution, 7×7, 1024 to 1024": (49, 1024, 1024),
    "dense, 64 rows, 256 to 1024": (64, 256, 1024),
    "dense, 1 row, 1024 to 1000": (1, 1024, 1000),
}
MULTIPLIES = re.compile(r"\s(fmla|fmul|sdot|smull2?|smlal2?|sadalp)\s")


def measure(layer: str, board: str, precision: str) -> dict[str, object]:
    """Cost the innermost loop of one layer."""
    target = load_target(board)
    pixels, inputs, outputs = LAYERS[layer]
    epilogue = FloatClamp(0.0, 6.0) if precision == "float32" else Requantize(40, 3, -128, 127)
    spec = conv2d.Conv2d(1, pixels, inputs, outputs, (1, 1), (1, 1), 1, epilogue)
    tile = conv2d.tile_of(spec, vector_of(target))
    llvm, core, attributes = find_llvm(), str(target.core.cost_model), attributes_of(target)
    loop = innermost_loop(_code(spec, target))
    (lines,) = disassembled(llvm, [loop], core, attributes)
    products = b"".join(
        loop[4 * i : 4 * i + 4] for i, line in enumerate(lines) if MULTIPLIES.search(f"{line} ")
    )
    whole, alone = cost_blocks(llvm, [loop, products], core, attributes)
    return {
        "recipe": f"{board}-{precision}-{'x'.join(map(str, LAYERS[layer]))}",
        "layer": layer, "board": board, "precision": precision, "model": f"{core} (llvm-mca {llvm.version})",
        "tile": [tile.pixels, tile.channels], "step": tile.step, "instructions": len(lines),
        "multiplications": len(products) // 4, "cycles": round(whole.cycles, 2), "limit": alone.limit,
    }  # fmt: skip


def _code(spec: conv2d.Conv2d, target: Target) -> bytes:
    """Return the machine code of a kernel."""
    import tvm
    from elftools.elf.elffile import ELFFile

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "kernel.o"
        module = tvm.IRModule({"kernel": conv2d.build(spec, vector_of(target))})
        (kernel,) = build_kernels(module, target, "network", file)
        with file.open("rb") as stream:
            elf = ELFFile(stream)
            (symbol,) = elf.get_section_by_name(".symtab").get_symbol_by_name(kernel.symbol)
            section = elf.get_section(symbol["st_shndx"])
            return section.data()[symbol["st_value"] :][: symbol["st_size"]]


def innermost_loop(code: bytes) -> bytes:
    """Return the longest run of AArch64 instructions that ends in a branch to its start and has no other branch."""
    words = [int.from_bytes(code[i : i + 4], "little") for i in range(0, len(code), 4)]
    # Arm ARM C4.1.66: B.cond and CBZ, CBNZ have their distance in bits 5 to 23.
    branches = [
        i for i, w in enumerate(words) if w & 0xFF000010 == 0x54000000 or w & 0x7E000000 == 0x34000000
    ]
    loops = []
    for end in branches:
        distance = (words[end] >> 5 & 0x7FFFF ^ 0x40000) - 0x40000
        if distance < 0 and not any(end + distance <= other < end for other in branches):
            loops.append((-distance, end + distance))
    length, start = max(loops)
    return code[4 * start : 4 * (start + length + 1)]


def table(results: list[dict]) -> str:
    """Return the page's table in Markdown."""
    lines = [
        "| layer | board | precision | tile | instructions, multiplications | cycles | limit | share of the limit |",
        "|---" * 8 + "|",
    ]
    for result in results:
        pixels, channels = result["tile"]
        counts = ", ".join(format_count(result[what]) for what in ("instructions", "multiplications"))
        cells = (
            *(result["layer"], result["board"], result["precision"], f"{pixels}×{channels}", counts),
            *(f"{result['cycles']:.1f}", f"{result['limit']:.1f}", f"{share_of(result):.0%}"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def share_of(result: dict) -> float:
    """Return what share of the limit a loop reaches."""
    return result["limit"] / result["cycles"]


def with_table(document: str) -> str:
    """Return the page's text with its table made anew."""
    return tables.with_table(document, "issue_limit", table(keeping.kept(RESULTS)))


def main() -> None:
    """Cost loops, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("run", "table"))
    if parser.parse_args().verb == "run":
        for board in BOARDS:
            for precision in latency.PRECISIONS:
                for layer in LAYERS:
                    result = measure(layer, board, precision)
                    keeping.keep(RESULTS, result)
                    print(table([result]).splitlines()[-1], file=sys.stderr, flush=True)
    page = latency.PAGE
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
