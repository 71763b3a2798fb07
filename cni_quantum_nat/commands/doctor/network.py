"""Links, addresses and routes of a network namespace, as the kernel describes them: by a few dumps, and by asking for routes."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, Self

from ...kernel.netlink import NLM_F_DUMP, NLM_F_REQUEST, NetlinkSocket, attribute, attributes, message
from ...model.addresses import Address, Subnet
from ...model.errors import KernelRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

_NETLINK_ROUTE = 0
_GETLINK, _GETADDR, _GETROUTE, _GETRULE = 18, 22, 26, 34
_LINK_HEADER = Struct("=BxHiLL")  # ifinfomsg: family, type, index, flags, change
_ADDRESS_HEADER = Struct("=BBBBL")  # ifaddrmsg: family, prefix length, flags, scope, index
# rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags. fib_rule_hdr has the action as type.
_ROUTE_HEADER = Struct("=BBBBBBBBL")
_NUMBER = Struct("=L")
_NEXT_HOP = Struct("=HBBi")  # rtnexthop: length, flags, hops, interface
_UNICAST, _CLONED = 1, 0x200
_UP = 1
_IFNAME, _LINK, _MASTER, _LINKINFO = 3, 5, 10, 18
_KIND, _SLAVE_KIND, _SLAVE_DATA = 1, 4, 5
_PORT_HAIRPIN = 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_DESTINATION, _SOURCE, _INCOMING, _OUTGOING, _GATEWAY, _PRIORITY, _MULTIPATH, _TABLE = 1, 2, 3, 4, 5, 6, 9, 15
_RULE_INCOMING, _RULE_PRIORITY, _RULE_MARK = 3, 6, 10
_REFUSALS = {6: "blackhole", 7: "unreachable", 8: "prohibit"}
_MAIN = 254
_FAMILIES = {4: 2, 6: 10}
_FAMILY_OF = {2: 4, 10: 6}


class Link(NamedTuple):
    """A network interface. number: its index. peer, master: indexes, 0 for none. hairpin: whether a bridge port has that mode."""

    number: int
    name: str
    is_up: bool
    kind: str
    master: int
    peer: int
    is_bridge_port: bool
    hairpin: bool


class LocalAddress(NamedTuple):
    """An address of an interface. number: the index of the interface."""

    number: int
    address: Address
    prefix_length: int

    @property
    def subnet(self) -> Subnet:
        """The subnet that the interface is connected to."""
        return Subnet.parse(f"{self.address}/{self.prefix_length}")


class DefaultRoute(NamedTuple):
    """A default route of the main table, or one of its next hops. number: the index of the interface. gateway: None if there is none."""

    family: int
    number: int
    metric: int
    gateway: Address | None


class Lookup(NamedTuple):
    """The kernel's answer for a route: an error number, or the index of the interface."""

    error_number: int
    outgoing: int


class Refusal(NamedTuple):
    """A route or a rule that refuses packets. text: as ip(8) shows it. remedy: the command that deletes it."""

    text: str
    remedy: str


class Routing:
    """Asks the kernel for routes as packets would take them. Use it as a context manager."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket(_NETLINK_ROUTE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def look_up(self, destination: Address, source: Address | None = None, incoming: int = 0) -> Lookup:
        """Return the route for a packet of the host, or for one from `source` that arrives at interface `incoming`.

        For the latter the kernel also validates the source (rp_filter), and whether that interface forwards.
        """
        bits = len(destination.packed) * 8
        header = _ROUTE_HEADER.pack(_FAMILIES[destination.family], bits, bits if source else 0, 0, 0, 0, 0, 0, 0)
        request = header + attribute(_DESTINATION, destination.packed)
        if source is not None:
            request += attribute(_SOURCE, source.packed)
        if incoming:
            request += attribute(_INCOMING, _NUMBER.pack(incoming))
        (reply, *_) = self._socket.exchange(message(_GETROUTE, NLM_F_REQUEST, 1, request))
        if reply.error_number:
            return Lookup(reply.error_number, 0)
        kind = _ROUTE_HEADER.unpack_from(reply.payload)[7]
        error_number = {6: 22, 7: 113, 8: 13}.get(kind, 0)  # IPv6 answers with the route that refuses
        index = dict(attributes(reply.payload, _ROUTE_HEADER.size)).get(_OUTGOING)
        return Lookup(error_number, _NUMBER.unpack(index)[0] if index else 0)


def _dump(kind: int, request: bytes, what: str) -> Iterator[bytes]:
    netlink = NetlinkSocket(_NETLINK_ROUTE)
    try:
        for reply in netlink.dump_unchanged(message(kind, NLM_F_REQUEST | NLM_F_DUMP, 1, request)):
            if reply.error_number:
                raise KernelRefused(f"list {what}", reply.error_number)
            yield reply.payload
    finally:
        netlink.close()


def read_links() -> list[Link]:
    """List the interfaces."""
    return [_link(payload) for payload in _dump(_GETLINK, _LINK_HEADER.pack(0, 0, 0, 0, 0), "interfaces")]


def _link(payload: bytes) -> Link:
    _, _, index, flags, _ = _LINK_HEADER.unpack_from(payload)
    parts = dict(attributes(payload, _LINK_HEADER.size))
    information = dict(attributes(parts.get(_LINKINFO, b"")))
    is_bridge_port = _text(information, _SLAVE_KIND) == "bridge"
    port = dict(attributes(information.get(_SLAVE_DATA, b""))) if is_bridge_port else {}
    return Link(
        index,
        _text(parts, _IFNAME),
        bool(flags & _UP),
        _text(information, _KIND),
        _number(parts, _MASTER),
        _number(parts, _LINK),
        is_bridge_port,
        bool(port.get(_PORT_HAIRPIN, b"\0")[0]),
    )


def _text(parts: dict[int, bytes], kind: int) -> str:
    return parts.get(kind, b"").rstrip(b"\0").decode()


def _number(parts: dict[int, bytes], kind: int) -> int:
    return int(_NUMBER.unpack(parts[kind])[0]) if kind in parts else 0


def read_addresses() -> list[LocalAddress]:
    """List the addresses of all interfaces."""
    found = []
    for payload in _dump(_GETADDR, _ADDRESS_HEADER.pack(0, 0, 0, 0, 0), "addresses"):
        family, length, _, _, index = _ADDRESS_HEADER.unpack_from(payload)
        parts = dict(attributes(payload, _ADDRESS_HEADER.size))
        packed = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS)
        if family in _FAMILY_OF and packed:
            found.append(LocalAddress(index, Address(_FAMILY_OF[family], packed), length))
    return found


def read_default_routes() -> list[DefaultRoute]:
    """List the default routes of the main table that lead somewhere, preferred ones first."""
    found = []
    for family, number in _FAMILIES.items():
        for payload in _dump(_GETROUTE, _ROUTE_HEADER.pack(number, 0, 0, 0, 0, 0, 0, 0, 0), "routes"):
            _, length, _, _, table, _, _, kind, flags = _ROUTE_HEADER.unpack_from(payload)
            if length or kind != _UNICAST or flags & _CLONED:
                continue
            parts = dict(attributes(payload, _ROUTE_HEADER.size))
            if (_number(parts, _TABLE) or table) == _MAIN:
                hops = (
                    [(_number(parts, _OUTGOING), parts)]
                    if _OUTGOING in parts
                    else _next_hops(parts.get(_MULTIPATH, b""))
                )
                for index, of_hop in hops:
                    gateway = Address(family, of_hop[_GATEWAY]) if _GATEWAY in of_hop else None
                    found.append(DefaultRoute(family, index, _number(parts, _PRIORITY), gateway))
    return sorted(found, key=lambda route: (route.family, route.metric))


def _next_hops(payload: bytes) -> list[tuple[int, dict[int, bytes]]]:
    """Return the interfaces and attributes of an array of rtnexthop."""
    found, offset = [], 0
    while offset + _NEXT_HOP.size <= len(payload):
        length, _, _, number = _NEXT_HOP.unpack_from(payload, offset)
        found.append((number, dict(attributes(payload[: offset + length], offset + _NEXT_HOP.size))))
        offset += max((length + 3) & ~3, _NEXT_HOP.size)
    return found


def read_rule_marks(family: int) -> set[int]:
    """Return the packet marks that routing rules ask for."""
    request = _ROUTE_HEADER.pack(_FAMILIES[family], 0, 0, 0, 0, 0, 0, 0, 0)
    found = [dict(attributes(payload, _ROUTE_HEADER.size)) for payload in _dump(_GETRULE, request, "routing rules")]
    return {_number(parts, _RULE_MARK) for parts in found if _RULE_MARK in parts}


def find_refusal(destination: Address, source: Address | None, incoming: str) -> Refusal | None:
    """Return the rule or the most specific route that refuses such a packet, None if there is none."""
    return _refusing_rule(destination, source, incoming) or _refusing_route(destination)


def _refusing_rule(destination: Address, source: Address | None, incoming: str) -> Refusal | None:
    family = destination.family
    for payload in _dump(_GETRULE, _ROUTE_HEADER.pack(_FAMILIES[family], 0, 0, 0, 0, 0, 0, 0, 0), "routing rules"):
        _, to_length, from_length, _, _, _, _, action, _ = _ROUTE_HEADER.unpack_from(payload)
        parts = dict(attributes(payload, _ROUTE_HEADER.size))
        if action not in _REFUSALS or _RULE_MARK in parts:
            continue
        to = _subnet(family, parts.get(_DESTINATION), to_length)
        of = _subnet(family, parts.get(_SOURCE), from_length)
        interface = _text(parts, _RULE_INCOMING)
        if not to.contains(destination) or interface not in ("", incoming):
            continue
        if from_length and (source is None or not of.contains(source)):
            continue
        priority = _number(parts, _RULE_PRIORITY)
        ip = "ip -6" if family == 6 else "ip"
        return Refusal(f"routing rule {priority} ({_REFUSALS[action]})", f"{ip} rule del pref {priority}")
    return None


def _refusing_route(destination: Address) -> Refusal | None:
    family, found = destination.family, []
    for payload in _dump(_GETROUTE, _ROUTE_HEADER.pack(_FAMILIES[family], 0, 0, 0, 0, 0, 0, 0, 0), "routes"):
        _, length, _, _, table, _, _, kind, _ = _ROUTE_HEADER.unpack_from(payload)
        parts = dict(attributes(payload, _ROUTE_HEADER.size))
        subnet = _subnet(family, parts.get(_DESTINATION), length)
        if kind in _REFUSALS and subnet.contains(destination):
            found.append((length, kind, subnet, _number(parts, _TABLE) or table))
    if not found:
        return None
    _, kind, subnet, table = max(found, key=lambda entry: entry[0])
    text = f"{_REFUSALS[kind]} {subnet}" + ("" if table == _MAIN else f" table {table}")
    return Refusal(f"route {text}", f"ip {'-6 ' if family == 6 else ''}route del {text}")


def _subnet(family: int, packed: bytes | None, length: int) -> Subnet:
    return Subnet(Address(family, packed or bytes(4 if family == 4 else 16)), length)
