"""Asks a Linux machine what it is: cores, clocks, caches, features, memory, temperature. Any shell will do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from armlet.artifacts import CoreFacts, DeviceFacts, DeviceState
from armlet.devices.board import DeviceFailed, Workplace

_SCRIPT = r"""
say() { [ -r "$2" ] && printf '%s=%s\n' "$1" "$(tr '\0\n' '  ' < "$2")"; }
echo "machine=$(uname -m)"
echo "kernel=$(uname -sr)"
say model /proc/device-tree/model
if command -v getprop > /dev/null; then
  echo "model=$(getprop ro.product.model)"
  echo "os=Android $(getprop ro.build.version.release)"
fi
[ -r /etc/os-release ] && (. /etc/os-release && echo "os=$PRETTY_NAME")
sed -n 's/^MemTotal: *\([0-9]*\).*/memory_kib=\1/p' /proc/meminfo
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
  n=${cpu##*/cpu}
  say "cpu.$n.max_khz" "$cpu/cpufreq/cpuinfo_max_freq"
  for index in "$cpu"/cache/index[0-9]*; do
    [ -r "$index/size" ] || continue
    echo "cpu.$n.cache=$(cd "$index" && cat level type size ways_of_associativity | tr '\n' ' ')"
  done
done
echo cpuinfo:
cat /proc/cpuinfo
"""
_STATE = r"""
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
  n=${cpu##*/cpu}
  for what in scaling_governor scaling_cur_freq; do
    [ -r "$cpu/cpufreq/$what" ] && echo "$n $what $(cat "$cpu/cpufreq/$what")"
  done
done
for zone in /sys/class/thermal/thermal_zone[0-9]*; do
  [ -r "$zone/temp" ] && echo "zone temp $(cat "$zone/temp" 2> /dev/null)"
done
true
"""

_ARM_PARTS: Mapping[int, str] = MappingProxyType({
    0xC07: "cortex-a7", 0xC08: "cortex-a8", 0xC09: "cortex-a9", 0xC0F: "cortex-a15",
    0xD03: "cortex-a53", 0xD04: "cortex-a35", 0xD05: "cortex-a55", 0xD07: "cortex-a57", 0xD08: "cortex-a72",
    0xD09: "cortex-a73", 0xD0A: "cortex-a75", 0xD0B: "cortex-a76", 0xD0C: "neoverse-n1", 0xD0D: "cortex-a77",
    0xD40: "neoverse-v1", 0xD41: "cortex-a78", 0xD42: "cortex-a78ae", 0xD44: "cortex-x1", 0xD46: "cortex-a510",
    0xD47: "cortex-a710", 0xD48: "cortex-x2", 0xD49: "neoverse-n2", 0xD4B: "cortex-a78c", 0xD4D: "cortex-a715",
    0xD4E: "cortex-x3", 0xD4F: "neoverse-v2", 0xD80: "cortex-a520", 0xD81: "cortex-a720", 0xD82: "cortex-x4",
})  # fmt: skip
"""LLVM's names of Arm's own cores by the part number of MIDR_EL1 (Arm's technical reference manuals, "Main ID")."""
_ARM = 0x41  # implementer of the same register

_FEATURES: Mapping[str, str] = MappingProxyType({
    "asimd": "neon", "neon": "neon", "asimddp": "dotprod", "asimdhp": "fp16", "i8mm": "i8mm", "sve": "sve",
    "sse4_2": "sse4.2", "avx2": "avx2", "avx512_vnni": "avx512vnni",
})  # fmt: skip
"""armlet's names of what Linux lists in /proc/cpuinfo."""


def probe(place: Workplace) -> DeviceFacts:
    """Ask a machine what it is.

    Raises:
        DeviceFailed: it has no shell, or is no Linux.
    """
    done = place.execute(["sh", "-c", _SCRIPT])
    head, _, cpuinfo = done.stdout.decode(errors="replace").partition("cpuinfo:\n")
    if done.code or not cpuinfo:
        raise DeviceFailed(
            f"the device does not tell what it is: {done.stderr.strip() or 'no /proc/cpuinfo'}"
        )
    pairs = [line.partition("=") for line in head.splitlines() if "=" in line]
    said = {key: value.strip() for key, _, value in reversed(pairs)}  # of two names the first
    caches: dict[int, list[str]] = {}
    for key, _, value in pairs:
        if found := re.fullmatch(r"cpu\.(\d+)\.cache", key):
            caches.setdefault(int(found[1]), []).append(value.strip())
    blocks = list(_processors(cpuinfo))
    cores = tuple(
        CoreFacts(
            number,
            _core_name(block),
            _mhz(said.get(f"cpu.{number}.max_khz")),
            tuple(sorted(caches.get(number, ()))),
        )
        for number, block in blocks
    )
    flags = next(
        (block[key] for _, block in blocks for key in ("Features", "flags") if key in block), ""
    ).split()
    features = tuple(sorted({_FEATURES[flag] for flag in flags if flag in _FEATURES}))
    kib = said.get("memory_kib", "")
    return DeviceFacts(
        machine=said.get("machine", ""),
        model=said.get("model", ""),
        system=f"{said['os']}, {said.get('kernel', '')}" if said.get("os") else said.get("kernel", ""),
        cores=cores,
        features=features,
        memory_bytes=int(kib) * 1024 if kib.isdigit() else None,
    )


def state(place: Workplace) -> DeviceState:
    """Ask a machine for its clocks, governors and temperature of this moment; None is what it does not tell."""
    lines = [
        line.split()
        for line in place.execute(["sh", "-c", _STATE]).stdout.decode(errors="replace").splitlines()
    ]
    told = [words for words in lines if len(words) == 3]
    governors = {words[2] for words in told if words[1] == "scaling_governor"}
    clocks = {
        int(words[0]): int(words[2]) / 1000
        for words in told
        if words[1] == "scaling_cur_freq" and words[2].isdigit()
    }
    heats = [int(words[2]) / 1000 for words in told if words[1] == "temp" and words[2].isdigit()]
    return DeviceState(
        governor=", ".join(sorted(governors)) or None,
        clocks_mhz=tuple(clocks[n] for n in sorted(clocks)),
        temperature_c=max(heats, default=None),
    )


def _processors(cpuinfo: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield number and lines of each processor; 32-bit kernels say what is common after the last one."""
    paragraphs = [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in part.splitlines())}
        for part in cpuinfo.strip().split("\n\n")
    ]
    common = {k: v for block in paragraphs if "processor" not in block for k, v in block.items()}
    for block in paragraphs:
        if block.get("processor", "").isdigit():
            yield int(block["processor"]), common | block


def _core_name(block: Mapping[str, str]) -> str:
    if "CPU part" not in block:
        return block.get("model name", "unknown")
    part, maker = int(block["CPU part"], 0), int(block.get("CPU implementer", "0"), 0)
    if maker == _ARM and part in _ARM_PARTS:
        return _ARM_PARTS[part]
    return f"implementer {maker:#x} part {part:#x}"


def _mhz(khz: str | None) -> float | None:
    return int(khz) / 1000 if khz and khz.isdigit() else None
