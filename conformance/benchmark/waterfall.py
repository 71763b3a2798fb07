"""Draw the phases of an ADD one after the other, from exec to exit, as SVG. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import costs

if TYPE_CHECKING:
    from .figures import Figures

_LABELS, _BARS, _VALUES, _LINE, _TOP = 340, 380, 60, 26, 34
_STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-weight: 600; font-size: 13px } rect { fill: #c2410c }
@media (prefers-color-scheme: dark) { text { fill: #ddd } rect { fill: #fb923c } }
</style>"""


def draw_waterfall(figures: Figures) -> str:
    """Return the picture: a bar for the median of each phase, which begins where the one before ends."""
    phases = [figure for figure in figures if (figure.key.section, figure.key.what) == (costs.SECTION, costs.PHASES)]
    total = sum(figure.median for figure in phases)
    height = _TOP + _LINE * len(phases)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LABELS + _BARS + _VALUES} {height}" role="img">',
        "<title>Phases of an ADD, from exec to exit, in milliseconds</title>",
        _STYLE,
        f'<text class="title" x="0" y="16">ADD from exec to exit: {total:.1f} ms</text>',
    ]
    begin = 0.0
    for number, figure in enumerate(phases):
        y = _TOP + _LINE * number
        x, width = (_BARS * part / total for part in (begin, figure.median))
        lines += [
            f'<text x="0" y="{y + 12}">{figure.key.contender}</text>',
            f'<rect x="{_LABELS + x:.1f}" y="{y}" width="{width:.1f}" height="16"/>',
            f'<text x="{_LABELS + x + width + 6:.1f}" y="{y + 12}">{figure.median:.2f}</text>',
        ]
        begin += figure.median
    return "\n".join([*lines, "</svg>", ""])
