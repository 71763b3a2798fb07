"""Connection Tracker: removes flows that would outlive the mapping or the container that they belong to.

A translated flow is translated for as long as conntrack remembers it, whatever the rules say by then; UDP never ends
as long as somebody sends. Spoken is ctnetlink (linux/netfilter/nfnetlink_conntrack.h; the filter flags are in the
kernel's net/netfilter/nf_internals.h): a dump that the kernel filters (CTA_FILTER, Linux 5.8), then a delete for each flow.

    dump request:  nfgenmsg, CTA_TUPLE_ORIG or CTA_TUPLE_REPLY { what is compared }, CTA_FILTER { which fields of it are }
    tuple:         CTA_TUPLE_IP { source, destination }, CTA_TUPLE_PROTO { number, source port, destination port }
    delete:        nfgenmsg, CTA_TUPLE_ORIG as it came, CTA_ID, CTA_ZONE where there is one

The original tuple is what the first packet said, the reply tuple what an answer looks like before it is translated back:
an answer from the container has the container's address as source.
"""

from __future__ import annotations

from _struct import Struct
from errno import EINVAL, ENOENT

from .errors import KernelRefused
from .model import PROTOCOLS, Address
from .netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkSocket, attribute, attributes, message, nested

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .model import PortMapping

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 1 << 8
_GET, _DELETE = 1, 2
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SOURCE = {4: 1, 6: 3}
_DESTINATION = {4: 2, 6: 4}
_PROTOCOL, _DESTINATION_PORT = 1, 3
_FILTER_FLAGS = {_ORIGINAL: 1, _REPLY: 2}
_BY_SOURCE, _BY_PROTOCOL = 1 << 0, 1 << 3
_FAMILIES = {4: 2, 6: 10}

_FAMILY_HEADER = Struct(">BBH")
_FLAGS = Struct("=L")
_DELETES_PER_REQUEST = 64


class Flow:
    """A tracked connection: its original and reply tuples, and what a delete needs to name it."""

    __slots__ = ("_family", "_parts")

    def __init__(self, payload: bytes) -> None:
        self._family = 4 if payload[0] == _FAMILIES[4] else 6
        self._parts = dict(attributes(payload, _FAMILY_HEADER.size))

    def _field(self, direction: int, part: int, kind: int) -> bytes:
        return dict(attributes(dict(attributes(self._parts[direction])).get(part, b""))).get(kind, b"")

    @property
    def destination(self) -> Address:
        """Where the first packet was sent to, before any translation."""
        return Address(self._family, self._field(_ORIGINAL, _TUPLE_IP, _DESTINATION[self._family]))

    @property
    def destination_port(self) -> int:
        """The port that the first packet was sent to, before any translation."""
        return int.from_bytes(self._field(_ORIGINAL, _TUPLE_PROTO, _DESTINATION_PORT), "big")

    def delete_request(self, sequence: int) -> bytes:
        """Frame its deletion."""
        named = (_ORIGINAL, _ID, _ZONE)
        kept = b"".join(
            (nested if kind == _ORIGINAL else attribute)(kind, self._parts[kind])
            for kind in named
            if kind in self._parts
        )
        header = _FAMILY_HEADER.pack(_FAMILIES[self._family], 0, 0)
        return message(_SUBSYSTEM | _DELETE, NLM_F_REQUEST | NLM_F_ACK, sequence, header + kept)


class ConnectionTracker:
    """The host's connection tracking table, through one socket for each call."""

    def forget_container(self, addresses: list[Address]) -> None:
        """Delete the flows from and to these addresses: translated to the container's ports, or masqueraded from it."""
        if addresses:
            self._delete(lambda netlink: self._flows_of(netlink, addresses))

    def forget_stale_udp(
        self, mappings: list[PortMapping], families: set[int], is_local: Callable[[Address], bool]
    ) -> None:
        """Delete the UDP flows to the host ports of `mappings`, so that who was sending already reaches the container.

        Only flows to the host itself: a container's flow to the same port of somebody else is left alone.
        """
        wanted = [mapping for mapping in mappings if mapping.protocol == "udp"]
        families = {family for family in families if any(mapping.serves(family) for mapping in wanted)}
        if families:
            self._delete(lambda netlink: _stale(self._udp_flows(netlink, families), wanted, is_local))

    def _flows_of(self, netlink: NetlinkSocket, addresses: list[Address]) -> Iterator[Flow]:
        for address in addresses:
            source = nested(_TUPLE_IP, attribute(_SOURCE[address.family], address.packed))
            for direction in (_ORIGINAL, _REPLY):
                yield from _dump(netlink, address.family, direction, source, _BY_SOURCE)

    def _udp_flows(self, netlink: NetlinkSocket, families: set[int]) -> Iterator[Flow]:
        udp = nested(_TUPLE_PROTO, attribute(_PROTOCOL, bytes((PROTOCOLS["udp"],))))
        for family in sorted(families):
            yield from _dump(netlink, family, _ORIGINAL, udp, _BY_PROTOCOL)

    def _delete(self, find: Callable[[NetlinkSocket], Iterator[Flow]]) -> None:
        netlink = NetlinkSocket(_NETLINK_NETFILTER)
        try:
            flows = list(find(netlink))
            for start in range(0, len(flows), _DELETES_PER_REQUEST):
                chunk = flows[start : start + _DELETES_PER_REQUEST]
                for reply in netlink.exchange(b"".join(flow.delete_request(i) for i, flow in enumerate(chunk))):
                    if reply.error_number not in (0, ENOENT):  # it may have ended by itself
                        raise KernelRefused("forget a tracked connection", reply.error_number)
        finally:
            netlink.close()


def _dump(netlink: NetlinkSocket, family: int, direction: int, compared: bytes, flags: int) -> Iterator[Flow]:
    """Yield the flows whose tuple in this direction equals `compared` in the fields that `flags` name."""
    header = _FAMILY_HEADER.pack(_FAMILIES[family], 0, 0)
    filtered = nested(direction, compared) + nested(_FILTER, attribute(_FILTER_FLAGS[direction], _FLAGS.pack(flags)))
    for reply in netlink.dump(message(_SUBSYSTEM | _GET, NLM_F_REQUEST | NLM_F_DUMP, 1, header + filtered)):
        if reply.error_number == EINVAL:
            raise KernelRefused(
                "list tracked connections",
                EINVAL,
                "The kernel needs module nf_conntrack_netlink and Linux 5.8 or newer.",
            )
        if reply.error_number:
            raise KernelRefused("list tracked connections", reply.error_number)
        yield Flow(reply.payload)


def _stale(flows: Iterator[Flow], mappings: list[PortMapping], is_local: Callable[[Address], bool]) -> Iterator[Flow]:
    """Yield the flows that one of the mappings would have translated."""
    by_port: dict[int, list[PortMapping]] = {}
    for mapping in mappings:
        by_port.setdefault(mapping.host_port, []).append(mapping)
    known: dict[Address, bool] = {}
    for flow in flows:
        destination = flow.destination
        taken = any(
            mapping.serves(destination.family) and mapping.specific_host_ip in (None, destination)
            for mapping in by_port.get(flow.destination_port, ())
        )
        if not taken:
            continue
        if destination not in known:
            known[destination] = is_local(destination)
        if known[destination]:
            yield flow
