"""Numbers with units as users write them ("5 ms", "96 KiB", "90 %") and as armlet prints them."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"^\s*([+-]?\d+(?:[_ ]\d{3})*(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([^\d\s].*?)?\s*$")
_MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_COUNTS = {"k": 1e3, "M": 1e6, "G": 1e9}
_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "kB": 1000, "MB": 1000**2, "GB": 1000**3}


def _split(text: str, units: dict[str, float] | dict[str, int], example: str) -> tuple[float, str]:
    match = _NUMBER.match(text)
    unit = match.group(2) if match else None
    if match is None or unit is None or unit not in units:
        raise ValueError(
            f"{text!r} is not a number with one of the units {', '.join(units)}: write {example}"
        )
    number = float(match.group(1).replace("_", "").replace(" ", ""))
    if number < 0 or math.isinf(number):
        raise ValueError(f"{text!r} is {'negative' if number < 0 else 'too large'}: write {example}")
    return number, unit


def parse_milliseconds(value: object) -> float:
    """Read a duration such as "5 ms" or "1.5 s"; a bare number is refused because its unit is unknown."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} has no unit: write for instance {value} ms")  # noqa: TRY004 - pydantic
    number, unit = _split(value, _MILLISECONDS, "5 ms")
    return number * _MILLISECONDS[unit]


def parse_bytes(value: object) -> int:
    """Read a size such as "96 KiB" or "1.5 MB"; a bare number is refused because its unit is unknown."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} has no unit: write for instance {value} KiB")  # noqa: TRY004 - pydantic
    number, unit = _split(value, _BYTES, "96 KiB")
    return round(number * _BYTES[unit])


def parse_decibels(value: object) -> float:
    """Read a ratio such as "6 dB"; a bare number is refused because it may be a plain ratio."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} has no unit: write for instance {value} dB")  # noqa: TRY004 - pydantic
    return _split(value, {"dB": 1}, "6 dB")[0]


def parse_fraction(value: object) -> float:
    """Read "90 %" or 0.9 as 0.9; a bare number above 1 is refused because it may be a percentage."""
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a share: write 90 % or 0.9")  # noqa: TRY004 - pydantic
    if isinstance(value, int | float):
        if not 0 <= value <= 1:
            raise ValueError(f"{value!r} is not between 0 and 1: write {value} % if that is meant")
        return float(value)
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a share: write 90 % or 0.9")  # noqa: TRY004 - pydantic
    number, _ = _split(value, {"%": 1}, "90 %")
    if not 0 <= number <= 100:
        raise ValueError(f"{value!r} is not between 0 % and 100 %")
    return number / 100


def parse_share_or_count(value: object) -> float:
    """Read "25 %" or 0.25 as a share, at most 1, and "500 k", "2 M" or a whole number from 1000 on as a count.

    A bare number between them is refused because it may be a percentage.
    """
    if isinstance(value, str) and not value.rstrip().endswith("%"):
        number, unit = _split(value, _COUNTS, "25 % or 500 k")
        count = number * _COUNTS[unit]
    elif isinstance(value, int | float) and not isinstance(value, bool) and value > 1:
        count = float(value)
    else:
        return parse_fraction(value)
    if count < 1000 or count != round(count):
        raise ValueError(f"{value!r} is not a share nor a whole number from 1000 on: write 25 % or 500 k")
    return count


def format_bytes(n: float) -> str:
    """Print bytes in binary units: 96 KiB."""
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if n >= size:
            return f"{n / size:.3g} {unit}" if n / size < 100 else f"{n / size:.0f} {unit}"
    return f"{n:.0f} B"


def format_ms(ms: float) -> str:
    """Print milliseconds with three significant digits: 1.93 ms, 0.0214 ms, 0.327 µs, 1.5 s."""
    if ms < 0.01:
        return f"{ms * 1000:.3g} µs"
    return f"{ms:.3g} ms" if ms < 999.5 else f"{ms / 1000:.3g} s"  # three digits of 999.5 are 1e+03


def format_percent(fraction: float, digits: int = 1) -> str:
    """Print a fraction as a percentage: 0.913 as 91.3 %."""
    return f"{fraction * 100:.{digits}f} %"


def format_count(n: float) -> str:
    """Print a count with a metric suffix: 1.93 M."""
    for suffix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= 0.9995 * size:  # what three digits would round up to 1e+03 of the smaller unit
            return f"{n / size:.3g} {suffix}"
    return f"{n:.0f}"
