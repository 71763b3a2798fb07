"""Write figures as Markdown tables, and compare them with those of another run. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .contenders import OURS, OURS_PIP
from .figures import MORE_IS_BETTER, Figure, Figures

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .targets import Target

_REGRESSION = 0.1
MARKS = ("<!-- figures: begin -->", "<!-- figures: end -->")


def tables(figures: Iterable[Figure]) -> Iterator[str]:
    """Yield the lines of a table for each quantity: a row per contender, a column per number of containers."""
    groups: dict[tuple[str, str, str], list[Figure]] = {}
    for figure in figures:
        groups.setdefault((figure.key.section, figure.key.what, figure.key.unit), []).append(figure)
    for (section, what, unit), found in groups.items():
        yield f"**{section}: {what}**, {unit}, median (quartiles)"
        yield ""
        yield from _table(found)
        yield ""


def _table(figures: list[Figure]) -> Iterator[str]:
    columns = sorted({figure.key.containers for figure in figures})
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for figure in sorted(figures, key=lambda figure: figure.key.variant):
        rows.setdefault((figure.key.variant, figure.key.contender), {})[figure.key.containers] = cell(figure)
    head = ["", *(f"{count:,} there" for count in columns)] if columns != [0] else ["", ""]
    grid = [head]
    for (variant, contender), cells in rows.items():
        grid.append([f"{contender}{', ' if variant else ''}{variant}", *(cells.get(count, "") for count in columns)])
    widths = [max(len(row[at]) for row in grid) for at in range(len(head))]
    for number, row in enumerate(grid):
        cells_of_row = [text.ljust(widths[0]) if not at else text.rjust(widths[at]) for at, text in enumerate(row)]
        yield f"| {' | '.join(cells_of_row)} |"
        if number == 0:
            yield f"|{'|'.join(('-' * (width + 1)) + ('-' if not at else ':') for at, width in enumerate(widths))}|"


def cell(figure: Figure) -> str:
    """Return a median with its quartiles, with the significant digits."""
    digits = 0 if figure.median >= 100 else 1
    if figure.q1 == figure.q3:
        return f"{figure.median:,.{digits}f}"
    return f"{figure.median:,.{digits}f} ({figure.q1:,.{digits}f}-{figure.q3:,.{digits}f})"


def verdicts(targets: Iterable[Target]) -> Iterator[str]:
    """Yield the lines of the table of targets, if there are any."""
    rows = list(targets)
    if not rows:
        return
    yield "| target | measured | wanted | |"
    yield "|---|---:|---:|---|"
    for target in rows:
        verdict = "met" if target.is_met else f"**missed by {abs(target.value - target.limit):.2f}**"
        bound = f"at {'least' if target.at_least else 'most'} {target.limit:g}"
        yield f"| {target.what} | {target.value:.2f} | {bound} | {verdict} |"
    yield ""


def change(before: Figure, now: Figure) -> float:
    """Return the fraction by which a figure became worse; negative if it became better."""
    if not before.median or not now.median:
        return 0.0
    ratio = now.median / before.median
    return (1 / ratio if now.key.unit in MORE_IS_BETTER else ratio) - 1


def regressions(before: Figures, now: Figures) -> list[tuple[Figure, Figure, float]]:
    """Return our own figures that became worse by a tenth or more: before, now, and the fraction."""
    found = []
    for figure in now:
        old = before.get(figure.key)
        if figure.key.contender in (OURS, OURS_PIP) and old and change(old, figure) >= _REGRESSION:
            found.append((old, figure, change(old, figure)))
    return found


def drift_of_peers(before: Figures, now: Figures) -> float | None:
    """Return the median change of the peers' figures, which is due to the machine, as the programs are the same."""
    changes = sorted(
        change(old, figure)
        for figure in now
        if figure.key.contender not in (OURS, OURS_PIP) and (old := before.get(figure.key))
    )
    return changes[len(changes) // 2] if changes else None


def comparison(before: Figures, now: Figures) -> Iterator[str]:
    """Yield sentences about what became worse."""
    found = regressions(before, now)
    for old, figure, part in found:
        key = figure.key
        what = f"{key.section}: {key.what}, {key.contender}, {key.containers:,} there{', ' if key.variant else ''}{key.variant}"
        yield f"WORSE by {part:.0%}: {what}: {old.median:.1f} -> {figure.median:.1f} {key.unit}"
    if not found:
        yield "None of our figures became worse by a tenth."
    drift = drift_of_peers(before, now)
    if drift is not None:
        yield f"The peers' own figures changed by {drift:+.0%} in the median: that is the machine, not the plugin."


def put_into(document: str, lines: Iterable[str]) -> str:
    """Return a document with these lines between its marks; raise ValueError if it has none."""
    begin, end = (document.index(mark) for mark in MARKS)
    return document[: begin + len(MARKS[0])] + "\n\n" + "\n".join(lines).strip() + "\n\n" + document[end:]
