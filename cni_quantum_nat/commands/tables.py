"""The commands' output for people: tables, ages, abbreviated IDs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from ..model.errors import CniError

CONTAINER_CHARACTERS = 12  # as in podman and crictl
_PIPED_WIDTH = 10_000  # one line per row
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def print_table(
    columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], folded: Container[str] | None = None
) -> None:
    """Print a table: as wide as the terminal, or one line per row if the output is not a terminal.

    folded: the columns to wrap if the terminal is too narrow; None for all.
    """
    from rich.console import Console  # 60 ms, which completions and --json do without
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=folded is not None and column not in folded)
    for row in rows:
        table.add_row(*map(Text, row))  # Text, since rich would read the brackets of an IPv6 address as markup
    console.print(table)


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
