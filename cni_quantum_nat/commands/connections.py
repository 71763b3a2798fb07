"""`quantum-nat connections [CONTAINER]`: the translated connections of containers, from conntrack."""

from __future__ import annotations

from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any, NamedTuple

from ..model.addresses import Address
from ..model.attachments import PROTOCOL_NAMES
from ..model.errors import KERNEL_REFUSED, CniError
from .completion import containers
from .directories import states_of
from .find import attachments_of
from .listing import Row, add_options, show
from .parser import ALL_STATES, add_command
from .records import read_all
from .tables import complain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..model.attachments import Attachment
    from .parser import Commands

_COLUMNS = ("DIRECTION", "PROTOCOL", "FROM", "TO", "TRANSLATED", "STATE", "BYTES", "CONTAINER")
_STACKED = ("FROM", "TO", "TRANSLATED")
_SEEN_REPLY, _ASSURED, _SOURCE_TRANSLATED, _DESTINATION_TRANSLATED = (
    1 << 1,
    1 << 2,
    1 << 4,
    1 << 5,
)  # enum ip_conntrack_status
_TCP_STATES = (  # enum tcp_conntrack
    "none",
    "syn-sent",
    "syn-received",
    "established",
    "fin-wait",
    "close-wait",
    "last-ack",
    "time-wait",
    "close",
    "syn-sent2",
)


class Connection(NamedTuple):
    """A translated connection. Addresses include ports; `bytes` is None if the host does not count them.

    direction: "in" through a host port, or "out". source, destination: of the first packet, before translation.
    new_source, new_destination: after translation; empty if unchanged.
    """

    container_id: str
    direction: str
    protocol: str
    source: str
    destination: str
    new_source: str
    new_destination: str
    state: str
    expires_s: int
    bytes: int | None


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "connections",
        run,
        summary="list current translated connections",
        description="List the current connections of containers that are translated, from the kernel's conntrack table.",
        examples=("connections 4f1c09 --json", "connections --filter state=established --sort bytes --watch"),
        scope=ALL_STATES,
    )
    container = parser.add_argument(
        "container", metavar="CONTAINER", nargs="?", help="container ID, or a unique prefix"
    )
    container.completer = containers  # type: ignore[attr-defined]  # argcomplete reads it
    add_options(parser, _COLUMNS, "connections")


def run(arguments: argparse.Namespace) -> int:
    """Print the connections of one container, or of all; return 1 if a record cannot be read."""
    return show(arguments, _COLUMNS, lambda: _rows(arguments), folded=("TRANSLATED",), stacked=_STACKED)


def _rows(arguments: argparse.Namespace) -> tuple[list[Row], int]:
    if arguments.container is None:
        recorded, damaged = read_all(states_of(arguments))
    else:
        recorded, damaged = attachments_of(arguments, arguments.container), []
    complain(damaged)
    found = sorted(connections_of([one.attachment for one in recorded]))
    return [Row(_cells(connection), _as_json(connection)) for connection in found], 1 if damaged else 0


def connections_of(attachments: list[Attachment]) -> Iterator[Connection]:
    """Yield the translated connections of the attachments' addresses; raise CniError(101) if conntrack cannot be read."""
    containers = _Containers(attachments)
    for message in _tracked():
        status = message.get_attr("CTA_STATUS") or 0
        original, reply = (_Tuple(message.get_attr(f"CTA_TUPLE_{side}")) for side in ("ORIG", "REPLY"))
        if status & _DESTINATION_TRANSLATED and (container := containers.at(reply.source)):
            yield _describe(message, container, "in", original, reply)
        elif status & _SOURCE_TRANSLATED and (container := containers.at(original.source)):
            yield _describe(message, container, "out", original, reply)


class _Containers:
    """The container or network of each address."""

    def __init__(self, attachments: list[Attachment]) -> None:
        self._by_address: dict[Address, str] = {}
        self._networks: list[tuple[Any, str]] = []
        for attachment in sorted(attachments, key=lambda a: a.created_at):
            for endpoint in attachment.endpoints:
                if attachment.is_network:
                    self._networks.append((endpoint.network, attachment.id.container_id))
                else:
                    self._by_address[endpoint.address] = attachment.id.container_id

    def at(self, address: str) -> str:
        """Return the container ID or network name with this address; empty if there is none."""
        parsed = Address.parse(address)
        if parsed in self._by_address:
            return self._by_address[parsed]
        return next((name for network, name in self._networks if network.contains(parsed)), "")


class _Tuple:
    """One direction of a connection: the addresses and ports of its packets."""

    def __init__(self, attributes: Any) -> None:
        addresses, protocol = attributes.get_attr("CTA_TUPLE_IP"), attributes.get_attr("CTA_TUPLE_PROTO")
        version = "V4" if addresses.get_attr("CTA_IP_V4_SRC") else "V6"
        self.source: str = addresses.get_attr(f"CTA_IP_{version}_SRC")
        self.destination: str = addresses.get_attr(f"CTA_IP_{version}_DST")
        self.protocol: int = protocol.get_attr("CTA_PROTO_NUM")
        self._ports = [protocol.get_attr(f"CTA_PROTO_{end}_PORT") for end in ("SRC", "DST")]

    @property
    def sender(self) -> str:
        return _with_port(self.source, self._ports[0])

    @property
    def receiver(self) -> str:
        return _with_port(self.destination, self._ports[1])


def _with_port(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _tracked() -> Iterator[Any]:
    from pyroute2 import NFCTSocket
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        for family in (AF_INET, AF_INET6):
            with NFCTSocket(family) as conntrack:
                yield from conntrack.dump()
    except (NetlinkError, OSError) as error:
        raise CniError(
            KERNEL_REFUSED,
            f"cannot list tracked connections: {error}",
            "Run it as root, and load the kernel module: `modprobe nf_conntrack_netlink`.",
        ) from error


def _describe(message: Any, container: str, direction: str, original: _Tuple, reply: _Tuple) -> Connection:
    return Connection(
        container_id=container,
        direction=direction,
        protocol=PROTOCOL_NAMES.get(original.protocol, str(original.protocol)),
        source=original.sender,
        destination=original.receiver,
        new_source="" if reply.receiver == original.sender else reply.receiver,
        new_destination="" if reply.sender == original.receiver else reply.sender,
        state=_state(message),
        expires_s=message.get_attr("CTA_TIMEOUT") or 0,
        bytes=_bytes(message),
    )


def _state(message: Any) -> str:
    tcp = (message.get_attr("CTA_PROTOINFO") or _Nothing).get_attr("CTA_PROTOINFO_TCP")
    if tcp:
        return _TCP_STATES[tcp.get_attr("CTA_PROTOINFO_TCP_STATE")]
    status = message.get_attr("CTA_STATUS") or 0
    if status & _ASSURED:
        return "assured"
    return "replied" if status & _SEEN_REPLY else "unreplied"


class _Nothing:
    """Stands for a missing attribute."""

    @staticmethod
    def get_attr(_name: str) -> None:
        return None


def _bytes(message: Any) -> int | None:
    """Return the bytes of both directions; None unless net.netfilter.nf_conntrack_acct is 1."""
    counters = [message.get_attr(f"CTA_COUNTERS_{side}") for side in ("ORIG", "REPLY")]
    counted = [counter.get_attr("CTA_COUNTERS_BYTES") for counter in counters if counter]
    return sum(counted) if counted else None


def _cells(connection: Connection) -> dict[str, str]:
    changes = [f"from {connection.new_source}"] if connection.new_source else []
    changes += [f"to {connection.new_destination}"] if connection.new_destination else []
    cells = (
        connection.direction,
        connection.protocol,
        connection.source,
        connection.destination,
        " ".join(changes),
        connection.state,
        "-" if connection.bytes is None else str(connection.bytes),
        connection.container_id,
    )
    return dict(zip(_COLUMNS, cells, strict=True))


def _as_json(connection: Connection) -> dict[str, object]:
    return {
        "containerId": connection.container_id,
        "direction": connection.direction,
        "protocol": connection.protocol,
        "source": connection.source,
        "destination": connection.destination,
        "newSource": connection.new_source,
        "newDestination": connection.new_destination,
        "state": connection.state,
        "expiresS": connection.expires_s,
        "bytes": connection.bytes,
    }
