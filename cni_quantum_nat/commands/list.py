"""`quantum-nat list`: every attachment on record."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from ..state.directory import State
from .completion import networks
from .kernel import flows_by_owner
from .parser import add_command
from .records import read_records
from .tables import CONTAINER_CHARACTERS, age, complain, print_table

if TYPE_CHECKING:
    import argparse

    from ..model.attachments import Attachment
    from .parser import Commands

_COLUMNS = ("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "PORTS", "CONNECTIONS", "AGE")
_FOLDED = ("ADDRESSES", "PORTS")


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "list",
        run,
        summary="list attachments with their addresses and ports",
        description="List all attachments, oldest first, with the number of connections so far.",
        examples=("list --network containers",),
    )
    network = parser.add_argument("--network", metavar="NAME", help="only attachments to this network")
    network.completer = networks  # type: ignore[attr-defined]  # argcomplete reads it
    parser.add_argument("--json", action="store_true", help="print the records as a JSON array")


def run(arguments: argparse.Namespace) -> int:
    """Print the records, oldest first."""
    state = State(arguments.state_dir)
    found = read_records(state)
    records = found.attachments
    if arguments.network is not None:
        records = [attachment for attachment in records if attachment.id.network == arguments.network]
    flows, now = flows_by_owner(records, state), time.time()
    if arguments.json:
        print(json.dumps([_as_json(attachment, flows, now) for attachment in records], indent=2))
    else:
        print_table(_COLUMNS, (_row(attachment, flows, now) for attachment in records), _FOLDED)
    complain(found.damaged)
    return 1 if found.damaged else 0


def _as_json(attachment: Attachment, flows: dict[str, int], now: float) -> dict[str, object]:
    return {
        **attachment.as_record(),
        "connections": flows.get(attachment.id.owner),
        "ageS": int(now - attachment.created_at),
    }


def _row(attachment: Attachment, flows: dict[str, int], now: float) -> tuple[str, ...]:
    return (
        attachment.id.network,
        attachment.id.container_id[:CONTAINER_CHARACTERS],
        attachment.id.interface,
        ", ".join(str(e.network if attachment.is_network else e.address) for e in attachment.endpoints),
        ", ".join(str(mapping) for mapping in attachment.port_mappings) or "-",
        str(flows.get(attachment.id.owner, "-")),
        age(now - attachment.created_at),
    )
