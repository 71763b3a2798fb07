"""What the commands for ports of running containers have in common: their arguments, and whom they are about."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from ..model.addresses import Address
from ..model.attachments import PROTOCOLS
from ..model.errors import InvalidConfiguration
from ..nat.live import LivePorts, PublishedPort
from ..state.directory import State
from ..state.program_lock import ProgramLock
from .completion import containers
from .find import attachments_of

if TYPE_CHECKING:
    from ..model.attachments import PortMapping
    from .records import Recorded

_LAST_PORT = 65535


def add_container(parser: argparse.ArgumentParser) -> None:
    """Add the container, the first argument."""
    container = parser.add_argument("container", metavar="CONTAINER", help="container ID, or a unique prefix")
    container.completer = containers  # type: ignore[attr-defined]  # argcomplete reads it


def add_host_ip(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add --host-ip."""
    parser.add_argument("--host-ip", metavar="ADDRESS", type=_address, help=meaning)


def add_drain(parser: argparse.ArgumentParser) -> None:
    """Add --drain."""
    parser.add_argument("--drain", action="store_true", help="leave open connections where they are")


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IP address") from error


def host_port(text: str) -> PublishedPort:
    """Parse a host port or a range, with a protocol or without: 8080, 53/udp, 8080-8090."""
    ports, protocol = _split_protocol(text)
    first, last = _range(ports)
    return PublishedPort(protocol, first, last)


def host_and_container_ports(text: str) -> tuple[str, range, range]:
    """Parse HOST:CONTAINER, ports or ranges of the same size, with a protocol or without: 8080:80, 53:53/udp, 8080-8090:80-90."""
    ports, protocol = _split_protocol(text)
    host, colon, container = ports.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(
            f"{text!r} names no container port: write HOST:CONTAINER, such as 8080:80, or {ports}:{ports}"
        )
    pair = []
    for side in (host, container):
        first, last = _range(side)
        pair.append(range(first, last + 1))
    if len(pair[0]) != len(pair[1]):
        raise argparse.ArgumentTypeError(
            f"{text!r} has {len(pair[0])} host ports and {len(pair[1])} container ports: both must have as many"
        )
    return protocol, pair[0], pair[1]


def _split_protocol(text: str) -> tuple[str, str]:
    ports, slash, protocol = text.partition("/")
    if slash and protocol not in PROTOCOLS:
        raise argparse.ArgumentTypeError(f"{protocol!r} is not one of {', '.join(PROTOCOLS)}")
    return ports, protocol or "tcp"


def _range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    numbers = [first, last] if dash else [first, first]
    if not all(n.isascii() and n.isdecimal() and 1 <= int(n) <= _LAST_PORT for n in numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a port from 1 to {_LAST_PORT}, or two with a dash between them"
        )
    if int(numbers[0]) > int(numbers[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not an ascending range")
    return int(numbers[0]), int(numbers[1])


def attachment_of(arguments: argparse.Namespace) -> Recorded:
    """Return the attachment that the container and --network name; raise InvalidConfiguration if that may be several."""
    found = attachments_of(arguments, arguments.container)
    container_id = found[0].attachment.id.container_id
    networks = list(dict.fromkeys(one.attachment.id.network for one in found))
    if arguments.network is not None:
        found = [one for one in found if one.attachment.id.network == arguments.network]
        if not found:
            raise InvalidConfiguration(
                f"container {container_id} is not on network {arguments.network}", f"It is on {', '.join(networks)}."
            )
    elif len(networks) > 1:
        raise InvalidConfiguration(
            f"container {container_id} is on several networks: {', '.join(networks)}",
            f"Name the one that the port should lead to: --network {networks[0]}",
        )
    return found[0]


def manager_of(one: Recorded) -> LivePorts:
    """Return the NAT Manager for the state directory that has the record."""
    return LivePorts(State(one.state.directory, ProgramLock))


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print a JSON array of the mappings")


def print_mappings(arguments: argparse.Namespace, done: str, mappings: list[PortMapping], container_id: str) -> None:
    """Say what was done to each mapping."""
    if arguments.json:
        print(json.dumps([_as_json(mapping, container_id) for mapping in mappings], indent=2))
    else:
        for mapping in mappings:
            print(f"{done}: {mapping} of container {container_id}")


def _as_json(mapping: PortMapping, container_id: str) -> dict[str, object]:
    return {
        "containerId": container_id,
        "containerPort": mapping.container_port,
        "protocol": mapping.protocol,
        "hostIP": "" if mapping.host_ip is None else str(mapping.host_ip),
        "hostPort": mapping.host_port,
        **({"range": mapping.host_range} if mapping.size > 1 else {}),
    }
