"""`quantum-nat port CONTAINER [PORT]`: the published ports of a container, in the format of `podman port`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, NamedTuple

from .completion import containers, ports
from .find import attachments_of
from .parser import ALL_STATES, add_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..model.attachments import Attachment
    from .parser import Commands

_ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - printed, not bound


class Published(NamedTuple):
    """One line of output: a container port, and the host address and port that it is published on, or ranges of both.

    size: the number of ports.
    """

    container_port: int
    protocol: str
    host_ip: str
    host_port: int
    size: int = 1

    @property
    def host(self) -> str:
        """The host address and port."""
        host_ip = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip
        return f"{host_ip}:{_range(self.host_port, self.size)}"

    def __str__(self) -> str:
        return f"{_range(self.container_port, self.size)}/{self.protocol} -> {self.host}"


def _range(first: int, size: int) -> str:
    return str(first) if size == 1 else f"{first}-{first + size - 1}"


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "port",
        run,
        summary="show the published ports of a container",
        description="Show the published ports of a container, in the format of podman port.",
        examples=("port 4f1c09 53/udp",),
        scope=ALL_STATES,
    )
    container = parser.add_argument("container", metavar="CONTAINER", help="container ID, or a unique prefix")
    container.completer = containers  # type: ignore[attr-defined]  # argcomplete reads it
    port = parser.add_argument("port", metavar="PORT", nargs="?", help="only this container port, such as 80 or 53/udp")
    port.completer = ports  # type: ignore[attr-defined]
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def run(arguments: argparse.Namespace) -> int:
    """Print the ports; return 1 if there are none."""
    attachments = [one.attachment for one in attachments_of(arguments, arguments.container)]
    published = sorted({line for attachment in attachments for line in published_by(attachment)})
    if arguments.port is not None:
        published = [part for line in published if (part := _part_named(line, arguments.port)) is not None]
    if arguments.json:
        print(json.dumps([_as_json(line) for line in published], indent=2))
    else:
        for line in published:
            print(line if arguments.port is None else line.host)
    if not published:
        missing = f"does not publish port {arguments.port}" if arguments.port else "publishes no ports"
        print(f"quantum-nat: {arguments.container} {missing}", file=sys.stderr)
    return 0 if published else 1


def published_by(attachment: Attachment) -> Iterator[Published]:
    """Yield the published ports of an attachment, one line for each address family."""
    for mapping in attachment.port_mappings:
        for family in sorted(attachment.published_families):
            if mapping.serves(family):
                host_ip = str(mapping.specific_host_ip or _ANY[family])
                yield Published(mapping.container_port, mapping.protocol, host_ip, mapping.host_port, mapping.size)


def _part_named(line: Published, name: str) -> Published | None:
    """Return the line if this is its container port or range; for a port within a range, the line for that port alone."""
    ports, _, protocol = name.partition("/")
    if (protocol or "tcp") != line.protocol:
        return None
    if ports == _range(line.container_port, line.size):
        return line
    if not (ports.isascii() and ports.isdecimal()) or not 0 <= int(ports) - line.container_port < line.size:
        return None
    return Published(int(ports), line.protocol, line.host_ip, line.host_port + int(ports) - line.container_port)


def _as_json(line: Published) -> dict[str, object]:
    return {
        "containerPort": line.container_port,
        "protocol": line.protocol,
        "hostIP": line.host_ip,
        "hostPort": line.host_port,
        **({"range": _range(line.host_port, line.size)} if line.size > 1 else {}),
    }
