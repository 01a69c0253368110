"""Proposes a target file for a device from what it says of itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from armlet.artifacts import CoreFacts, DeviceFacts
from armlet.errors import UsageError

_COST_MODELS: Mapping[str, str] = MappingProxyType({
    "cortex-a55": "cortex-a55", "cortex-a57": "cortex-a57", "cortex-a72": "cortex-a72",
    "cortex-a76": "neoverse-n1", "neoverse-n1": "neoverse-n1",
    "neoverse-v1": "neoverse-v1", "neoverse-n2": "neoverse-n2", "neoverse-v2": "neoverse-v2",
})  # fmt: skip
"""LLVM's scheduling models, by core; LLVM has none of its own for the A76, whose server twin is the N1."""
_QEMU_CPUS = (
    "cortex-a35",
    "cortex-a53",
    "cortex-a57",
    "cortex-a72",
    "cortex-a76",
    "neoverse-n1",
)
"""What QEMU emulates by name; any other core with what it has, `max`."""
_ARM32_CORES = ("cortex-a7", "cortex-a8", "cortex-a9", "cortex-a15")
"""Cores of Armv7-A. Newer ones run 32-bit code, too, but code made for them may use what the emulated A7 lacks."""
_USED = ("neon", "dotprod", "fp16", "i8mm")
"""Extensions that kernels use, in the order of a target file."""


def propose_target(facts: DeviceFacts, name: str) -> str:
    """Return a target file for the fastest of a device's cores, to be looked through by a person.

    Args:
        facts: of the device.
        name: of the target; what can't stand in one becomes a dash.

    Raises:
        UsageError: no code for such a device, or no name.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not slug:
        raise UsageError(f"{name!r} can't name a target: use lower-case letters, digits and dashes")
    arm32 = facts.machine.startswith("armv")
    if not (arm32 or facts.machine in ("aarch64", "arm64")):
        raise UsageError(
            f"a {facts.machine} is no Arm device: the targets host and x86-64-vnni are there for it"
        )
    core = max(facts.cores, key=lambda c: (c.max_mhz or 0.0, -c.number), default=None)
    known = core.name if core and re.fullmatch(r"(cortex|neoverse)-\w+", core.name) else "generic"
    if arm32 and known not in _ARM32_CORES:
        known = "generic"
    same = [c for c in facts.cores if core and (c.name, c.max_mhz) == (core.name, core.max_mhz)]
    lines = [
        f"# Proposed from what the device says of itself ({facts.system}). Look through it: clock and core are those",
        "# of its fastest cores, and no constant for estimates was fitted on it.",
        f"name: {slug}",
        f'description: "{_plain(facts.model or facts.machine)}, {known}"',
        f"triple: {'armv7a-linux-gnueabihf' if arm32 else 'aarch64-linux-gnu'}",
        "core:",
        f"  llvm_cpu: {known}",
        *([f"  cost_model: {_COST_MODELS[known]}"] if known in _COST_MODELS and not arm32 else []),
        *([f"  clock_mhz: {core.max_mhz:.0f}"] if core and core.max_mhz else []),
        f"  count: {max(len(same), 1)}",
        f"features: [{', '.join(_features(facts, arm32))}]",
        *(_caches(core) if core else []),
        *_tools(arm32, known),
    ]
    return "\n".join(lines) + "\n"


def _features(facts: DeviceFacts, arm32: bool) -> list[str]:
    return [f for f in (("neon",) if arm32 else _USED) if f in facts.features]


def _caches(core: CoreFacts) -> list[str]:
    """Return the section on caches, none where the kernel does not tell both levels."""
    found = {}
    for cache in core.caches:
        words = cache.split()
        if len(words) == 4 and words[1] in ("Data", "Unified") and words[3] != "0":
            found[words[0]] = f"{{size: {words[2].removesuffix('K')} KiB, ways: {words[3]}}}"
    if not {"1", "2"} <= set(found):
        return []
    return ["caches:", f"  l1: {found['1']}", f"  l2: {found['2']}"]


def _tools(arm32: bool, core: str) -> list[str]:
    prefix = "arm-linux-gnueabihf" if arm32 else "aarch64-linux-gnu"
    cpu = core if core in _QEMU_CPUS else "max"
    emulator = f"program: qemu-arm, cpu: {'cortex-a7' if arm32 else cpu}" if arm32 else f"cpu: {cpu}"
    return [f"toolchain: {{cc: {prefix}-gcc, ar: {prefix}-ar}}", f"emulator: {{{emulator}}}"]


def _plain(text: str) -> str:
    return re.sub(r'["\\\x00-\x1f]', " ", text).strip()
