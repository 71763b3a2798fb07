"""`quantum-nat list`: every attachment on record."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..hotpath.errors import CniError
from ..hotpath.state import State

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from ..hotpath.model import Attachment

_COLUMNS = ("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "PORTS", "AGE")
CONTAINER_CHARACTERS = 12  # what podman and crictl show
_PIPED_WIDTH = 10_000  # one line for each attachment, whatever reads it
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("list", help="list attachments with their addresses and ports")
    parser.add_argument("--json", action="store_true", help="print the records as a JSON array")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the records, oldest first."""
    damaged: list[CniError] = []
    records = sorted(State(arguments.state_dir).attachments(damaged), key=lambda attachment: attachment.created_at)
    if arguments.json:
        print(json.dumps([attachment.as_record() for attachment in records], indent=2))
    else:
        now = time.time()
        print_table(_COLUMNS, (_row(attachment, now) for attachment in records))
    for error in damaged:
        print(f"quantum-nat: {error.message}. {error.details}", file=sys.stderr)
    return 1 if damaged else 0


def print_table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print a table: as wide as the terminal, and one line a row for whatever else reads it."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))  # not markup: an IPv6 address stands in brackets
    console.print(table)


def _row(attachment: Attachment, now: float) -> tuple[str, ...]:
    return (
        attachment.id.network,
        attachment.id.container_id[:CONTAINER_CHARACTERS],
        attachment.id.interface,
        ", ".join(str(e.network if attachment.is_network else e.address) for e in attachment.endpoints),
        ", ".join(str(mapping) for mapping in attachment.port_mappings) or "-",
        age(now - attachment.created_at),
    )


def age(seconds: float) -> str:
    """Say a duration by its largest unit: 42s, 5m, 3h, 12d."""
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return "0s"
