"""`quantum-nat list`: every attachment on record."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ..model.attachments import NOWHERE
from ..nat.records import here_of
from .completion import networks
from .directories import states_of
from .kernel import flows_by_owner
from .listing import Row, add_options, show
from .parser import ALL_STATES, add_command
from .records import read_all
from .tables import age, complain

if TYPE_CHECKING:
    import argparse

    from ..state.directory import State
    from .parser import Commands
    from .records import Recorded

_COLUMNS = ("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "PORTS", "CONNECTIONS", "AGE")
_FOLDED = ("ADDRESSES", "PORTS")
_DIRECTORY = "STATE DIRECTORY"  # shown where there are several


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "list",
        run,
        summary="list attachments with their addresses and ports",
        description="List all attachments, oldest first, with the number of connections so far.",
        examples=(
            "list --network containers",
            "list --filter ports=8080-* --format container,ports",
            "list --sort=-connections --watch",
        ),
        scope=ALL_STATES,
    )
    network = parser.add_argument("--network", metavar="NAME", help="only attachments to this network")
    network.completer = networks  # type: ignore[attr-defined]  # argcomplete reads it
    add_options(parser, _COLUMNS, "attachments")


def run(arguments: argparse.Namespace) -> int:
    """Print the records, oldest first; return 1 if one cannot be read, or if their connections cannot."""
    states = states_of(arguments)
    columns = (*_COLUMNS, _DIRECTORY) if len(states) > 1 else _COLUMNS
    return show(arguments, columns, lambda: _rows(arguments, states), folded=_FOLDED, stacked=_FOLDED)


def _rows(arguments: argparse.Namespace, states: list[State]) -> tuple[list[Row], int]:
    recorded, complaints = read_all(states)
    if arguments.network is not None:
        recorded = [one for one in recorded if one.attachment.id.network == arguments.network]
    flows: dict[str, dict[str, int]] = {}
    for state in states:
        here = here_of(state).netns
        own = [
            one.attachment for one in recorded if one.state is state and one.attachment.host_netns in (here, NOWHERE)
        ]
        flows[state.directory], troubles = flows_by_owner(own, state)
        complaints += troubles
    _mention_elsewhere(recorded)
    complain(complaints)
    now = time.time()
    return [_row(one, flows[one.state.directory], now) for one in recorded], 1 if complaints else 0


def _mention_elsewhere(recorded: list[Recorded]) -> None:
    """Say why some have no connections: their rules are in another network namespace, which need not be broken."""
    elsewhere = sum(one.attachment.host_netns not in (here_of(one.state).netns, NOWHERE) for one in recorded)
    if elsewhere:
        print(
            f"quantum-nat: {elsewhere} of {len(recorded)} attachments have their rules in another network namespace of the host. "
            "Run this there to see connections.",
            file=sys.stderr,
        )


def _row(recorded: Recorded, flows: dict[str, int], now: float) -> Row:
    state, attachment = recorded
    addresses = [str(e.network if attachment.is_network else e.address) for e in attachment.endpoints]
    cells = (
        attachment.id.network,
        attachment.id.container_id,
        attachment.id.interface,
        ", ".join(addresses),
        ", ".join(str(mapping) for mapping in attachment.port_mappings) or "-",
        str(flows.get(attachment.id.owner, "-")),
        age(now - attachment.created_at),
        state.directory,
    )
    entry = {
        **attachment.as_record(),
        "connections": flows.get(attachment.id.owner),
        "ageS": int(now - attachment.created_at),
        "stateDir": state.directory,
    }
    return Row(dict(zip((*_COLUMNS, _DIRECTORY), cells, strict=True)), entry)
