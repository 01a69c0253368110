from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from armlet.artifacts import DeviceFacts
from armlet.devices.board import DeviceFailed, Finished, Workplace
from armlet.devices.local import LocalBoard
from armlet.devices.probe import probe, state
from armlet.devices.proposal import propose_target
from armlet.errors import UsageError
from armlet.preflight import require_target
from armlet.spec.load import load_target

# As the script prints it on a Raspberry Pi 5, on a phone of two kinds of cores, on a 32-bit Raspberry Pi 2.
PI_5 = """machine=aarch64
kernel=Linux 6.6.31
model=Raspberry Pi 5 Model B Rev 1.0
os=Debian GNU/Linux 12 (bookworm)
memory_kib=8256528
cpu.0.max_khz=2400000
cpu.0.cache=1 Data 64K 4 
cpu.0.cache=1 Instruction 64K 4 
cpu.0.cache=2 Unified 512K 8 
cpu.1.max_khz=2400000
cpuinfo:
processor\t: 0
Features\t: fp asimd evtstrm aes fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

processor\t: 1
Features\t: fp asimd evtstrm aes fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""  # noqa: W291 - as it is printed
PHONE = """machine=aarch64
kernel=Linux 4.14
model=Pixel 4
os=Android 13
memory_kib=5800000
cpu.0.max_khz=1785600
cpu.1.max_khz=2841600
cpuinfo:
processor\t: 0
Features\t: fp asimd asimdhp asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd05

processor\t: 1
Features\t: fp asimd asimdhp asimddp
CPU implementer\t: 0x51
CPU part\t: 0x804
"""
PI_2 = """machine=armv7l
kernel=Linux 6.1
memory_kib=948000
cpuinfo:
processor\t: 0
model name\t: ARMv7 Processor rev 5 (v7l)
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt
CPU implementer\t: 0x41
CPU part\t: 0xc07

Hardware\t: BCM2835
"""


class Answering(Workplace):
    """A device that answers every command alike."""

    def __init__(self, text: str, code: int = 0) -> None:
        self.finished = Finished(code, text.encode(), "sh: no such thing" if code else "")

    def put(self, name: str, content: bytes, *, executable: bool = False) -> None:
        raise NotImplementedError

    def get(self, name: str) -> bytes:
        raise NotImplementedError

    def execute(self, arguments: Sequence[str]) -> Finished:
        return self.finished

    def close(self) -> None:
        return


def facts(text: str) -> DeviceFacts:
    return probe(Answering(text))


def test_a_board_tells_its_cores_caches_and_extensions() -> None:
    found = facts(PI_5)

    assert found.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.system == "Debian GNU/Linux 12 (bookworm), Linux 6.6.31"
    assert [(core.name, core.max_mhz) for core in found.cores] == [("cortex-a76", 2400.0)] * 2
    assert found.cores[0].caches == ("1 Data 64K 4", "1 Instruction 64K 4", "2 Unified 512K 8")
    assert found.features == ("dotprod", "fp16", "neon")
    assert found.memory_bytes == 8256528 * 1024


def test_cores_of_other_makers_keep_their_numbers() -> None:
    assert [core.name for core in facts(PHONE).cores] == ["cortex-a55", "implementer 0x51 part 0x804"]


def test_this_machine_tells_what_it_is() -> None:
    with LocalBoard().open() as place:
        found, now = probe(place), state(place)

    assert found.machine
    assert found.cores
    assert found.memory_bytes
    assert now.temperature_c is None or -50 < now.temperature_c < 150


def test_clocks_governor_and_the_hottest_zone_are_read() -> None:
    told = (
        "0 scaling_governor ondemand",
        "0 scaling_cur_freq 600000",
        "1 scaling_cur_freq 1500000",
        "2 scaling_cur_freq <unknown>",
        "zone temp 48312",
    )
    lines = "\n".join((*told, "zone temp 51000", ""))
    now = state(Answering(lines))

    assert now.governor == "ondemand"
    assert now.clocks_mhz == (600.0, 1500.0)
    assert now.temperature_c == 51.0


def test_a_device_without_a_shell_is_refused() -> None:
    with pytest.raises(DeviceFailed, match="does not tell what it is: sh: no such thing"):
        probe(Answering("", 127))


@pytest.mark.parametrize(
    ("text", "core", "features", "clock"),
    [
        (PI_5, "cortex-a76", ("neon", "dotprod", "fp16"), 2400.0),
        (PHONE, "generic", ("neon", "dotprod", "fp16"), 2842.0),
        (PI_2, "cortex-a7", ("neon",), None),
        (PI_2.replace("0xc07", "0xd03"), "generic", ("neon",), None),  # a 64-bit core under a 32-bit system
        (PI_5.replace("0xd0b", "0xd05"), "cortex-a55", ("neon", "dotprod", "fp16"), 2400.0),
    ],
)
def test_a_proposed_target_is_one(
    tmp_path: Path, text: str, core: str, features: tuple[str, ...], clock: float | None
) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(propose_target(facts(text), "My Board"))

    target = load_target(str(file))

    assert target.name == "my-board"
    assert target.core.llvm_cpu == core
    assert target.features == features
    assert target.core.clock_mhz == clock
    assert target.calibration is None
    assert (target.caches is not None) == ("Unified" in text)
    require_target(target)  # compiler, emulator and cost model know it


def test_no_target_is_proposed_for_other_machines() -> None:
    other = facts(PI_5.replace("machine=aarch64", "machine=riscv64"))
    with pytest.raises(UsageError, match="a riscv64 is no Arm device"):
        propose_target(other, "board")
    with pytest.raises(UsageError, match="can't name a target"):
        propose_target(facts(PI_5), "...")
