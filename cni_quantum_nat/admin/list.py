"""`quantum-nat list`: every attachment on record."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from ..hotpath.state import State
from .tables import CONTAINER_CHARACTERS, age, complain, print_table

if TYPE_CHECKING:
    import argparse

    from ..hotpath.errors import CniError
    from ..hotpath.model import Attachment

_COLUMNS = ("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "PORTS", "AGE")


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
    complain(damaged)
    return 1 if damaged else 0


def _row(attachment: Attachment, now: float) -> tuple[str, ...]:
    return (
        attachment.id.network,
        attachment.id.container_id[:CONTAINER_CHARACTERS],
        attachment.id.interface,
        ", ".join(str(e.network if attachment.is_network else e.address) for e in attachment.endpoints),
        ", ".join(str(mapping) for mapping in attachment.port_mappings) or "-",
        age(now - attachment.created_at),
    )
