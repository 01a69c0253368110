"""Fills in the sources of `armlet/runtime`, which mark what depends on the program as `@name@`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def render(source: Path, folder: Path, values: Mapping[str, str]) -> Path:
    """Write `source` into `folder`, without its suffix `.in` and with every `@name@` replaced by its value.

    Raises:
        KeyError: the source has a mark that `values` lacks.
    """
    text = source.read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / source.stem
    output.write_text(re.sub(r"@([A-Za-z_]+)@", lambda mark: values[mark[1]], text), encoding="utf-8")
    return output
