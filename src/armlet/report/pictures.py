"""Pictures on the page: small PNGs inside SVG, with a title and words for those who can't see them.

Written by hand, as matplotlib would store four bytes of each grey pixel: three times as much.
"""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from armlet.exhibits import Pictures

_GAP = 1  # pixels between pictures
_N_SHADES = 32  # what an eye tells apart in a small picture, at half the bytes
_SHADES = bytes(round(round(v / 255 * (_N_SHADES - 1)) * 255 / (_N_SHADES - 1)) for v in range(256))
_CLEAR = 1  # no shade: stands for what lies between pictures
_TITLE_HEIGHT, _LABEL_WIDTH = 20, 92  # points
_NARROW, _WIDE = 245, 504  # points, as plots are wide


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Pictures side by side: lines of pixels, one or three bytes each."""

    n_channels: int
    width: int
    lines: tuple[bytes, ...]


def mosaic(pictures: Pictures, title: str, n_columns: int) -> str:
    """Show pictures in rows of `n_columns`."""
    tiles = _tiles(pictures, n_columns)
    height = _NARROW * len(tiles.lines) / tiles.width
    body = _image(tiles, 0, _TITLE_HEIGHT, _NARROW)
    return _svg(title, f"{pictures.shape[0]} pictures", (_NARROW, _TITLE_HEIGHT + height), body)


def strips(rows: Sequence[Pictures], title: str) -> str:
    """Show pictures that belong together below each other, one row of each kind with its name."""
    width, top, body = _WIDE - _LABEL_WIDTH, float(_TITLE_HEIGHT), ""
    for row in rows:
        tiles = _tiles(row, row.shape[0])
        height = width * len(tiles.lines) / tiles.width
        body += _text(row.name, _LABEL_WIDTH - 6, top + height / 2 + 3, 'font-size="9" text-anchor="end"')
        body += _image(tiles, _LABEL_WIDTH, top, width)
        top += height
    said = f"{rows[0].shape[0]} samples; from above: {', '.join(row.name for row in rows)}"
    return _svg(title, said, (_WIDE, top), body)


def png(n_channels: int, width: int, lines: Sequence[bytes]) -> bytes:
    """Return lines of pixels as a PNG file, grey (one channel) or coloured (three).

    Source: W3C 2003, "Portable Network Graphics (PNG) Specification".
    """
    header = struct.pack(">IIBBBBB", width, len(lines), 8, {1: 0, 3: 2}[n_channels], 0, 0, 0)
    clear = struct.pack(">H", _CLEAR) * n_channels
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines), 9)  # 0: the line as it is
    chunks = ((b"IHDR", header), (b"tRNS", clear), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _tiles(pictures: Pictures, n_columns: int) -> _Tiles:
    """Lay pictures out in rows of `n_columns` with clear pixels between them."""
    n, height, width, n_channels = pictures.shape
    pixels = base64.b64decode(pictures.pixels).translate(_SHADES)
    stride, clear = width * n_channels, bytes([_CLEAR]) * n_channels
    gap, nothing = clear * _GAP, clear * width
    columns = n_columns * width + (n_columns - 1) * _GAP
    lines: list[bytes] = []
    for first in range(0, n, n_columns):
        if first:
            lines += [clear * columns] * _GAP
        for y in range(height):
            places = [(i * height + y) * stride for i in range(first, min(first + n_columns, n))]
            shown = [pixels[place : place + stride] for place in places]
            lines.append(gap.join(shown + [nothing] * (n_columns - len(shown))))
    return _Tiles(n_channels, columns, tuple(lines))


def _image(tiles: _Tiles, left: float, top: float, width: float) -> str:
    data = base64.b64encode(png(tiles.n_channels, tiles.width, tiles.lines)).decode("ascii")
    height = width * len(tiles.lines) / tiles.width
    return (
        f'<image x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}"'
        f' href="data:image/png;base64,{data}"/>'
    )


def _text(words: str, x: float, y: float, style: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" {style}>{html.escape(words)}</text>'


def _svg(title: str, description: str, size: tuple[float, float], body: str) -> str:
    """Return an SVG element of so many points, named by its title and described in words, like the plots."""
    width, height = size
    shrinks = ' class="wide"' if width == _WIDE else ""
    heading = _text(title, 0, 12, 'font-size="10"')
    return (
        f'<svg{shrinks} viewBox="0 0 {width:g} {height:g}" style="max-width:{width * 4 / 3:.0f}px" role="img"'
        f' aria-label="{html.escape(f"{title}. {description}")}">{heading}{body}</svg>'
    )
