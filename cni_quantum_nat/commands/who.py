"""`quantum-nat who PORT`: who has a host port: containers, and processes of the host that listen on it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from ..kernel.processes import holders_of
from ..model.attachments import PROTOCOLS
from ..ports.listeners import find_listeners
from .directories import states_of
from .parser import ALL_STATES, add_command
from .port import published_by
from .records import read_all
from .tables import complain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .parser import Commands
    from .records import Recorded

_LAST_PORT = 65535


class Wanted(NamedTuple):
    """A host port, and the protocols in question."""

    port: int
    protocols: tuple[str, ...]


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "who",
        run,
        summary="show who has a host port",
        description="Show the containers that publish a host port, and the processes of the host that listen on it. "
        "The exit status is 1 if there are none.",
        examples=("who 8080", "who 53/udp"),
        scope=ALL_STATES,
    )
    parser.add_argument(
        "port", metavar="PORT", type=_wanted, help="a host port, such as 8080 or 53/udp; without protocol, all of them"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def _wanted(text: str) -> Wanted:
    port, slash, protocol = text.partition("/")
    if not (port.isdecimal() and port.isascii() and 1 <= int(port) <= _LAST_PORT):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to {_LAST_PORT}, such as 8080 or 53/udp")
    if slash and protocol not in PROTOCOLS:
        raise argparse.ArgumentTypeError(f"{protocol!r} is not one of {', '.join(PROTOCOLS)}")
    return Wanted(int(port), (protocol,) if slash else tuple(PROTOCOLS))


def run(arguments: argparse.Namespace) -> int:
    """Print the users of the port; return 1 if there are none, or if a record cannot be read."""
    recorded, complaints = read_all(states_of(arguments))
    found = [*_containers(recorded, arguments.port), *_processes(arguments.port)]
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for entry in found:
            print(_line(entry))
    if not found:
        print(f"quantum-nat: nobody on record or listening has host port {arguments.port.port}", file=sys.stderr)
    complain(complaints)
    return 0 if found and not complaints else 1


def _containers(recorded: list[Recorded], wanted: Wanted) -> Iterator[dict[str, Any]]:
    for state, attachment in recorded:
        for line in published_by(attachment):
            if line.protocol in wanted.protocols and 0 <= wanted.port - line.host_port < line.size:
                yield {
                    "protocol": line.protocol,
                    "hostIP": line.host_ip,
                    "containerId": attachment.id.container_id,
                    "network": attachment.id.network,
                    "interface": attachment.id.interface,
                    "containerPort": line.container_port + wanted.port - line.host_port,
                    "stateDir": state.directory,
                }


def _processes(wanted: Wanted) -> Iterator[dict[str, Any]]:
    for protocol in wanted.protocols:
        for listener in find_listeners(protocol, wanted.port, wanted.port):
            address = str(listener.address) if listener.address else "::" if 6 in listener.families else "0.0.0.0"  # noqa: S104
            owners = holders_of(listener.inode)
            yield {
                "protocol": protocol,
                "hostIP": address,
                "processes": [str(owner) for owner in owners],
            }


def _line(entry: dict[str, Any]) -> str:
    host_ip = f"[{entry['hostIP']}]" if ":" in entry["hostIP"] else entry["hostIP"]
    if "processes" in entry:
        who = ", ".join(entry["processes"]) or "a process that is not visible from here"
        return f"{entry['protocol']} {host_ip}: {who} listens"
    return (
        f"{entry['protocol']} {host_ip}: container {entry['containerId']} ({entry['interface']} on network "
        f"{entry['network']}), its port {entry['containerPort']}"
    )
