"""What the commands print for people: tables, ages, abbreviated IDs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from ..model.errors import CniError

CONTAINER_CHARACTERS = 12  # what podman and crictl show
_PIPED_WIDTH = 10_000  # one line a row, whatever reads it
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def print_table(
    columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], folded: Container[str] | None = None
) -> None:
    """Print a table: as wide as the terminal, and one line a row for whatever else reads it.

    folded: the columns that go on in the next line where the terminal is too narrow; all, unless it is given.
    """
    from rich.console import Console  # 60 ms, which a shell that completes a word, or a program, need not wait for
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=folded is not None and column not in folded)
    for row in rows:
        table.add_row(*map(Text, row))  # not markup: an IPv6 address stands in brackets
    console.print(table)


def age(seconds: float) -> str:
    """Say a duration by its largest unit: 42s, 5m, 3h, 12d."""
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return "0s"


def complain(errors: Iterable[CniError]) -> None:
    """Say on standard error what went wrong beside the answer, as damaged records."""
    for error in errors:
        print(f"quantum-nat: {error.message}. {error.details}", file=sys.stderr)
