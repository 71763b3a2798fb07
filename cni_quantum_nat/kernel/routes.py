"""The host's routes and addresses, over rtnetlink (linux/rtnetlink.h).

A pod's start waits for this module.
"""

from __future__ import annotations

import posix
from _socket import if_indextoname, if_nametoindex
from _struct import Struct
from errno import EEXIST

from ..model.addresses import Address
from ..model.errors import HOST_SETTING_REFUSED, NO_ROUTE, CniError
from .netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NetlinkSocket,
    attribute,
    attributes,
    decoding,
    message,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_NETLINK_ROUTE = 0
_NEWADDR, _DELADDR, _GETADDR, _GETROUTE, _GETNEXTHOP = 20, 21, 22, 26, 106
_ADDRESS_HEADER = Struct("=BBBBL")  # ifaddrmsg: family, prefixlen, flags, scope, index
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD, _SCOPE_HOST = 2, 254
_ROUTE_HEADER = Struct("=BBBBBBBBL")  # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_RTA_DST, _RTA_OIF, _RTA_MULTIPATH, _RTA_NH_ID = 1, 4, 9, 30
_RTM_F_FIB_MATCH = 0x2000  # the answer is the route itself, with its prefix and all next hops
_NEXT_HOP = Struct("=HBBL")  # rtnexthop: length, flags, hops, interface index
_NEXT_HOP_HEADER = Struct("=BBBBL")  # nhmsg: family, scope, protocol, reserved, flags
_NHA_ID, _NHA_GROUP, _NHA_OIF = 1, 2, 5
_GROUP_ENTRY_BYTES = 8  # struct nexthop_grp, which begins with the ID
_LONGEST_DEFAULT = 1  # 0.0.0.0/1 and 128.0.0.0/1 are a default route in two halves
# Far apart, one in each half of IPv4.
_PUBLIC = {4: ("9.9.9.9", "198.41.0.4"), 6: ("2001:503:ba3e::2:30", "2620:fe::fe")}
_TYPE_UNICAST = 1
_FAMILIES = {4: 2, 6: 10}
_INDEX = Struct("=L")


def interface_towards(address: Address) -> str:
    """Return the interface that the host routes this address to; raise CniError(105) if there is no route."""
    request = _route_request(address, 0, 1)
    netlink = NetlinkSocket(_NETLINK_ROUTE)
    try:
        for reply in netlink.exchange(request):
            index = dict(attributes(reply.payload, _ROUTE_HEADER.size)).get(_RTA_OIF) if reply.is_answer else None
            if index:
                with decoding:
                    return if_indextoname(_INDEX.unpack(index)[0])
    finally:
        netlink.close()
    raise CniError(
        NO_ROUTE,
        f"the host has no route to the container's address {address}",
        f"The previous plugin in the list must give the host a route to the container: `ip route get {address}`.",
    )


def container_interface(address: Address) -> str:
    """Return the interface to the container's own network; raise CniError(105) if there is no route.

    It is empty if only a default route leads to the address: that one leads everywhere, and the container is not at home there.
    """
    interface = interface_towards(address)
    matched = _matched_routes([address])
    return "" if matched and matched[0].prefix_length <= _LONGEST_DEFAULT else interface


def container_interface_or_none(address: Address) -> str | None:
    try:
        return container_interface(address)
    except CniError as error:
        if error.code != NO_ROUTE:
            raise
        return None


def default_route_interfaces(family: int) -> tuple[str, ...]:
    """Return the interfaces of the default route, one for each of its next hops; none if there is no default route.

    The kernel is asked for the route to public addresses, so that policy routing (wg-quick), routes in two halves (OpenVPN) and
    nexthop objects are followed as packets follow them, and the size of the tables does not matter. Of the answers, those for the
    shortest prefix count: one of the addresses may have a route of its own. No packet is sent.
    """
    routes = _matched_routes([Address.parse(text) for text in _PUBLIC[family]])
    shortest = min((route.prefix_length for route in routes), default=0)
    indexes = {index: None for route in routes if route.prefix_length == shortest for index in route.interfaces}
    return tuple(map(if_indextoname, indexes))


class _Route:
    """A route: the length of its prefix, and the interface index of each next hop."""

    __slots__ = ("interfaces", "prefix_length")

    def __init__(self, prefix_length: int, interfaces: list[int]) -> None:
        self.prefix_length = prefix_length
        self.interfaces = interfaces


def _matched_routes(addresses: list[Address]) -> list[_Route]:
    """Return the route that the kernel takes to each address, as it is in its table; without those that lead nowhere."""
    requests = b"".join(_route_request(address, _RTM_F_FIB_MATCH, number) for number, address in enumerate(addresses))
    netlink = NetlinkSocket(_NETLINK_ROUTE)
    try:
        found = [reply.payload for reply in netlink.exchange(requests, len(addresses)) if reply.is_answer]
        return [route for payload in found if (route := _read_route(payload, netlink)).interfaces]
    finally:
        netlink.close()


def _route_request(address: Address, flags: int, sequence: int) -> bytes:
    header = _ROUTE_HEADER.pack(_FAMILIES[address.family], len(address.packed) * 8, 0, 0, 0, 0, 0, 0, flags)
    return message(_GETROUTE, NLM_F_REQUEST, sequence, header + attribute(_RTA_DST, address.packed))


def _read_route(payload: bytes, netlink: NetlinkSocket) -> _Route:
    with decoding:
        _, prefix_length, _, _, _, _, _, kind, _ = _ROUTE_HEADER.unpack_from(payload)
        parts = dict(attributes(payload, _ROUTE_HEADER.size))
        interfaces: list[int] = []
        if kind != _TYPE_UNICAST:
            pass
        elif _RTA_OIF in parts:
            interfaces = [_INDEX.unpack(parts[_RTA_OIF])[0]]
        elif _RTA_MULTIPATH in parts:
            interfaces = list(_next_hops(parts[_RTA_MULTIPATH]))
        elif _RTA_NH_ID in parts:  # net.ipv4.nexthop_compat_mode is 0
            interfaces = _next_hop_object(_INDEX.unpack(parts[_RTA_NH_ID])[0], netlink)
        return _Route(prefix_length, interfaces)


def _next_hops(payload: bytes) -> Iterator[int]:
    """Yield the interface index of each struct rtnexthop."""
    offset = 0
    while offset + _NEXT_HOP.size <= len(payload):
        length, _, _, index = _NEXT_HOP.unpack_from(payload, offset)
        if length < _NEXT_HOP.size:
            raise ValueError(f"a next hop of {length} bytes")
        yield index
        offset += (length + 3) & ~3


def _next_hop_object(number: int, netlink: NetlinkSocket) -> list[int]:
    """Return the interface indexes of a nexthop object, or of those in its group."""
    request = message(
        _GETNEXTHOP, NLM_F_REQUEST, 1, _NEXT_HOP_HEADER.pack(0, 0, 0, 0, 0) + attribute(_NHA_ID, _INDEX.pack(number))
    )
    for reply in netlink.exchange(request):
        parts = dict(attributes(reply.payload, _NEXT_HOP_HEADER.size)) if reply.is_answer else {}
        if _NHA_OIF in parts:
            return [_INDEX.unpack(parts[_NHA_OIF])[0]]
        group = parts.get(_NHA_GROUP, b"")
        members = [_INDEX.unpack_from(group, offset)[0] for offset in range(0, len(group), _GROUP_ENTRY_BYTES)]
        return [index for member in members for index in _next_hop_object(member, netlink)]
    return []


def local_addresses(families: set[int]) -> list[Address]:
    """Return the addresses of all host interfaces, for these families."""
    found = []
    netlink = NetlinkSocket(_NETLINK_ROUTE)
    try:
        for family in sorted(families):
            header = _ADDRESS_HEADER.pack(_FAMILIES[family], 0, 0, 0, 0)
            for reply in netlink.dump_unchanged(message(_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, header)):
                if reply.error_number:
                    continue
                parts = dict(attributes(reply.payload, _ADDRESS_HEADER.size))
                # On point-to-point interfaces IFA_ADDRESS is the peer's; on others IPv6 has no IFA_LOCAL.
                packed = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS)
                if packed:
                    found.append(Address(family, packed))
    finally:
        netlink.close()
    return found


def add_loopback_address(address: Address) -> bool:
    """Add an address with host scope to interface lo; return whether it is new."""
    return _change_loopback(_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, address) != EEXIST


def remove_loopback_address(address: Address) -> None:
    """Remove an address from interface lo."""
    _change_loopback(_DELADDR, 0, address)


def _change_loopback(operation: int, flags: int, address: Address) -> int:
    """Add or remove an address on interface lo; return EEXIST if it was already there, else 0."""
    bits = len(address.packed) * 8
    header = _ADDRESS_HEADER.pack(_FAMILIES[address.family], bits, _IFA_F_NODAD, _SCOPE_HOST, if_nametoindex("lo"))
    request = header + attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)
    netlink = NetlinkSocket(_NETLINK_ROUTE)
    try:
        replies = netlink.exchange(message(operation, flags | NLM_F_REQUEST | NLM_F_ACK, 1, request))
    finally:
        netlink.close()
    error = next((reply.error_number for reply in replies), 0)
    if error not in (0, EEXIST):
        raise CniError(
            HOST_SETTING_REFUSED,
            f"cannot add or remove address {address} on interface lo: {posix.strerror(error)}",
            '"ipv6Localhost" needs IPv6 on lo: `sysctl -w net.ipv6.conf.lo.disable_ipv6=0`.',
        )
    return error
