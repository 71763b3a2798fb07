"""Draw the duration of calls over the number of existing containers, with logarithmic axes, as SVG. No I/O."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from . import calls
from .contenders import BACKENDS, NETAVARKS, OURS, both_of, portmap_of
from .figures import Figures, Key

if TYPE_CHECKING:
    from collections.abc import Iterator

_VERBS = ("ADD", "CHECK", "DEL")
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 250, 230, 48, 64, 44
_FLOOR_MS, _CEILING_MS = 2, 5000
_DECADES_OF_TEN = (2, 10, 100, 1000, 5000)
_STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-weight: 600; font-size: 13px } .grid { stroke: #8884; stroke-width: 1 }
polyline { fill: none; stroke-width: 2 } .c0 { stroke: #c2410c; fill: #c2410c } .c1 { stroke: #2563eb; fill: #2563eb }
.c2 { stroke: #0d9488; fill: #0d9488 } .c3 { stroke: #7c3aed; fill: #7c3aed } .c4 { stroke: #64748b; fill: #64748b }
polyline.c0 { stroke-width: 3 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .c0 { stroke: #fb923c; fill: #fb923c } .c1 { stroke: #60a5fa; fill: #60a5fa }
.c2 { stroke: #2dd4bf; fill: #2dd4bf } .c3 { stroke: #a78bfa; fill: #a78bfa } .c4 { stroke: #94a3b8; fill: #94a3b8 } }
polyline.c0, polyline.c1, polyline.c2, polyline.c3, polyline.c4 { fill: none }
</style>"""


def draw(figures: Figures) -> str:
    """Return the chart; the panel of a verb that was not measured is empty."""
    width = _LEFT + len(_VERBS) * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + 46
    levels = sorted({figure.key.containers for figure in figures if figure.key.section == calls.SECTION})
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>Milliseconds of ADD, CHECK and DEL against the containers already there</title>",
        _STYLE,
        *_legend(figures),
    ]
    for number, verb in enumerate(_VERBS):
        lines += _panel(figures, verb, levels, _LEFT + number * (_WIDTH + _GAP))
    return "\n".join([*lines, "</svg>", ""])


def _names(verb: str) -> list[str]:
    """Return the contenders to draw; for CHECK portmap alone, since bridge does not check ipMasq."""
    of_backend = portmap_of if verb == "CHECK" else both_of
    return [OURS, *map(of_backend, BACKENDS), *NETAVARKS]


def _legend(figures: Figures) -> Iterator[str]:
    """Name those of which there is a curve."""
    measured = {figure.key.contender for figure in figures if figure.key.section == calls.SECTION}
    labels = (OURS, "portmap + ipMasq (iptables)", "portmap + ipMasq (nftables)", *NETAVARKS)
    for number, (label, at) in enumerate(zip(labels, (0, 110, 300, 495, 645), strict=True)):
        if label not in measured:
            continue
        yield f'<rect class="c{number}" x="{_LEFT + at}" y="12" width="14" height="4"/>'
        yield f'<text x="{_LEFT + at + 20}" y="18">{label}</text>'


def _panel(figures: Figures, verb: str, levels: list[int], left: int) -> Iterator[str]:
    what = "CHECK (portmap alone)" if verb == "CHECK" else verb
    yield f'<text class="title" x="{left}" y="{_TOP - 14}">{what}, ms</text>'
    for value in _DECADES_OF_TEN:
        y = height_of(value)
        yield f'<line class="grid" x1="{left}" x2="{left + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,}</text>'
    for number, level in enumerate(levels):
        x = _across(left, number, levels)
        yield f'<text x="{x:.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{level:,}</text>'
    yield f'<text x="{left + _WIDTH / 2}" y="{_TOP + _HEIGHT + 36}" text-anchor="middle">containers already there</text>'
    for number, name in reversed(list(enumerate(_names(verb)))):  # ours last, above the others
        yield from _curve(figures, Key(calls.SECTION, verb, name, 0, calls.variant_of(1)), levels, left, number)


def _curve(figures: Figures, key: Key, levels: list[int], left: int, number: int) -> Iterator[str]:
    points = []
    for at, level in enumerate(levels):
        median = figures.median(key._replace(containers=level))
        if median is not None:
            points.append((_across(left, at, levels), height_of(median)))
    if points:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline class="c{number}" points="{path}"/>'
        yield from (f'<circle class="c{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)


def _across(left: int, number: int, levels: list[int]) -> float:
    return left + 14 + number * (_WIDTH - 28) / max(len(levels) - 1, 1)


def height_of(milliseconds: float) -> float:
    """Return the y coordinate of a value, from the top; values beyond the axis are at its end."""
    kept = min(max(milliseconds, _FLOOR_MS), _CEILING_MS)
    part = math.log(kept / _FLOOR_MS) / math.log(_CEILING_MS / _FLOOR_MS)
    return _TOP + _HEIGHT * (1 - part)
