"""The commands' output for people: tables, ages, abbreviated IDs."""

from __future__ import annotations

import os
import shutil
import sys
from textwrap import TextWrapper
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from ..model.errors import CniError

CONTAINER_CHARACTERS = 12  # as in podman and crictl
_GAP = "  "
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    folded: Container[str] | None = None,
    stacked: Sequence[str] = (),
) -> None:
    """Print a table: one line per row if the output is not a terminal, else as wide as that, never cutting a word.

    folded: the columns to wrap if the terminal is too narrow; None for all. stacked: the columns to put on top of each
    other if that does not suffice. If nothing does, each row is a paragraph with a line for each column.
    """
    print("\n".join(_lines(tuple(columns), [tuple(row) for row in rows], folded, stacked)))


def _lines(
    columns: tuple[str, ...], rows: list[tuple[str, ...]], folded: Container[str] | None, stacked: Sequence[str]
) -> Iterator[str]:
    if not sys.stdout.isatty():
        return _table(columns, rows, [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)])
    room = shutil.get_terminal_size().columns
    if widths := _fit(columns, rows, folded, room):
        return _table(columns, rows, widths, is_bold=True)
    if len(present := [name for name in stacked if name in columns]) > 1:
        fewer, merged, one = _stack(columns, rows, present)
        if widths := _fit(fewer, merged, (one,), room):
            return _table(fewer, merged, widths, is_bold=True)
    return _paragraphs(columns, rows, room)


def _fit(columns: tuple[str, ...], rows: list[tuple[str, ...]], folded: Container[str] | None, room: int) -> list[int]:
    """Return the columns' widths; empty if they do not fit, even if the columns that may wrap are as narrow as their words."""
    cells = list(zip(columns, *rows, strict=True))
    natural = [max(map(len, column)) for column in cells]
    least = [
        max(len(word) for text in column for word in text.split() or [""])
        if folded is None or name in folded
        else width
        for name, column, width in zip(columns, cells, natural, strict=True)
    ]
    spare = room - len(_GAP) * (len(columns) - 1) - sum(least)
    if spare < 0:
        return []
    widths = []
    for narrow, wide in zip(least, natural, strict=True):
        more = min(spare, wide - narrow)
        widths.append(narrow + more)
        spare -= more
    return widths


def _stack(
    columns: tuple[str, ...], rows: list[tuple[str, ...]], stacked: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Put columns into one, whose name is theirs, and return the table with that name."""
    first, name = columns.index(stacked[0]), "\n".join(stacked)

    def merged(row: tuple[str, ...], one: str) -> tuple[str, ...]:
        kept = [(column, text) for column, text in zip(columns, row, strict=True) if column not in stacked[1:]]
        return tuple(one if column == columns[first] else text for column, text in kept)

    def together(row: tuple[str, ...]) -> str:
        return "\n".join(row[columns.index(column)] for column in stacked if row[columns.index(column)])

    return merged(columns, name), [merged(row, together(row)) for row in rows], name


def _table(
    columns: tuple[str, ...], rows: list[tuple[str, ...]], widths: list[int], *, is_bold: bool = False
) -> Iterator[str]:
    for number, row in enumerate([columns, *rows]):
        cells = [_wrap(text, width) for text, width in zip(row, widths, strict=True)]
        for line in range(max(map(len, cells))):
            texts = [cell[line] if line < len(cell) else "" for cell in cells]
            text = _GAP.join(f"{part:<{width}}" for part, width in zip(texts, widths, strict=True)).rstrip()
            yield _bold(text) if is_bold and not number else text


def _paragraphs(columns: tuple[str, ...], rows: list[tuple[str, ...]], room: int) -> Iterator[str]:
    label = max(map(len, columns)) + len(_GAP)
    for number, row in enumerate(rows):
        if number:
            yield ""
        for column, text in zip(columns, row, strict=True):
            first, *others = _wrap(text, max(room - label, 1))
            yield _bold(column) + f"{'':<{label - len(column)}}{first}"
            yield from (f"{'':<{label}}{other}" for other in others)


def _wrap(text: str, width: int) -> list[str]:
    wrapper = TextWrapper(width or 1, break_long_words=False, break_on_hyphens=False)
    return [line for part in text.split("\n") for line in wrapper.wrap(part)] or [""]


def _bold(text: str) -> str:
    return text if os.environ.get("TERM", "dumb") == "dumb" else f"\x1b[1m{text}\x1b[0m"


def age(seconds: float) -> str:
    """Format a duration with its largest unit: 42s, 5m, 3h, 12d."""
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return "0s"


def complain(errors: Iterable[CniError]) -> None:
    """Print errors that do not prevent a result, such as damaged records, to standard error."""
    for error in errors:
        print(f"quantum-nat: {error.message}. {error.details}", file=sys.stderr)
