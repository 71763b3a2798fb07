"""What commands that list have in common: which rows and columns, in which order, once or again and again."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ..model.errors import InvalidConfiguration
from .parser import seconds
from .tables import CONTAINER_CHARACTERS, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CONTAINER = "CONTAINER"
_CLEAR = "\x1b[H\x1b[2J"
_USUAL_INTERVAL_S = 2.0


@dataclass(frozen=True)
class Row:
    """A row. cells: text by column, in the order of columns. entry: the same for --json."""

    cells: dict[str, str]
    entry: dict[str, Any]


def add_options(parser: argparse.ArgumentParser, columns: Sequence[str], what: str) -> None:
    """Add the options for a list. what: a row, in one word, plural."""
    names = ", ".join(columns)
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help=f"only {what} with this value in a column; * and ? match as in a shell; may be repeated",
    )
    parser.add_argument("--sort", metavar="COLUMN", help="sort by a column; with - before it, in reverse: --sort=-age")
    parser.add_argument("--format", metavar="COLUMN,...", help=f"only these columns: {names}")
    parser.add_argument("-q", "--quiet", action="store_true", help="only print the container IDs")
    parser.add_argument("--no-trunc", action="store_true", help="do not abbreviate container IDs")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=seconds,
        const=_USUAL_INTERVAL_S,
        metavar="SECONDS",
        help=f"print again every {_USUAL_INTERVAL_S:g} seconds, or as often as given, until interrupted",
    )
    parser.add_argument("--json", action="store_true", help=f"print the {what} as a JSON array")


def show(
    arguments: argparse.Namespace,
    columns: Sequence[str],
    rows: Callable[[], tuple[list[Row], int]],
    *,
    folded: Sequence[str],
    stacked: Sequence[str],
) -> int:
    """Print the rows as the options say; return the exit status that came with them. folded, stacked: see print_table."""
    while True:
        found, status = rows()
        chosen = _ordered([row for row in found if _matches(row, arguments.filter, columns)], arguments.sort, columns)
        if arguments.watch and sys.stdout.isatty():
            print(_CLEAR, end="")
        _print(arguments, columns, chosen, folded=folded, stacked=stacked)
        if not arguments.watch:
            return status
        try:
            sys.stdout.flush()
            time.sleep(arguments.watch)
        except KeyboardInterrupt:
            return status


def _print(
    arguments: argparse.Namespace,
    columns: Sequence[str],
    rows: list[Row],
    *,
    folded: Sequence[str],
    stacked: Sequence[str],
) -> None:
    shown = [_column(name, columns) for name in re.split(r"[,\s]+", arguments.format)] if arguments.format else columns
    if arguments.json:
        print(json.dumps([row.entry for row in rows], indent=2))
    elif arguments.quiet:
        for container in dict.fromkeys(row.cells[_CONTAINER] for row in rows):
            print(container)
    else:
        print_table(
            shown, [[_cell(row, name, is_whole=arguments.no_trunc) for name in shown] for row in rows], folded, stacked
        )


def _cell(row: Row, column: str, *, is_whole: bool) -> str:
    text = row.cells[column]
    return text[:CONTAINER_CHARACTERS] if column == _CONTAINER and not is_whole else text


def _column(name: str, columns: Sequence[str]) -> str:
    if name.upper() not in columns:
        raise InvalidConfiguration(f"there is no column {name!r}", f"The columns are {', '.join(columns)}.")
    return name.upper()


def _matches(row: Row, filters: list[str], columns: Sequence[str]) -> bool:
    """Return whether each filter matches the column's text, or one of the values in it."""
    for text in filters:
        name, equals, pattern = text.partition("=")
        column = _column(name.strip(), columns)
        if not equals:
            raise InvalidConfiguration(f"--filter {text!r} has no value", f"Write --filter {name}=VALUE.")
        whole = row.cells[column]
        if not any(fnmatchcase(value, pattern) for value in (whole, *re.split(r",\s*", whole))):
            return False
    return True


def _ordered(rows: list[Row], by: str | None, columns: Sequence[str]) -> list[Row]:
    if by is None:
        return rows
    column = _column(by.removeprefix("-"), columns)
    return sorted(rows, key=lambda row: _natural(row.cells[column]), reverse=by.startswith("-"))


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts web-10 after web-9, and 2h after 59m."""
    if match := re.fullmatch(r"(\d+)([smhd])", text):
        seconds = int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
        return [(0, seconds, "")]
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
