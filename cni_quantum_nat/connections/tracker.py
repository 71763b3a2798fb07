"""Connection Tracker: deletes conntrack entries that would outlive the mapping or the container that they belong to.

A connection is translated for as long as conntrack has an entry for it, whatever the rules say by then; UDP never ends as long as somebody
sends. The protocol is ctnetlink: linux/netfilter/nfnetlink_conntrack.h, and for the filter's flags net/netfilter/nf_internals.h.

    selection:  nfgenmsg, CTA_TUPLE_ORIG or CTA_TUPLE_REPLY { what is compared }, CTA_FILTER { which fields of it are },
                CTA_STATUS, CTA_STATUS_MASK
    tuple:      CTA_TUPLE_IP { source, destination }, CTA_TUPLE_PROTO { number, source port, destination port }
    one flow:   nfgenmsg, CTA_TUPLE_ORIG as it came, CTA_ID, CTA_ZONE where there is one

The original tuple is what the first packet said, the reply tuple what an answer looks like before it is translated back:
an answer from the container has the container's address as source.

Linux 6.10 and newer delete a selection by themselves, in 0.3 ms where the table has 262,144 buckets; older ones, from 5.8 on,
can only list it, which takes 12 ms there: a lock for each bucket. IPv6 addresses cannot be selected by at all: the kernel's
comparison is the wrong way round (ctnetlink_filter_match_tuple, Linux 5.8 to 6.18 at least), so that "from this address" would
delete everybody else's entries. So IPv6 entries are listed, and their bytes compared here before anything is decoded.
A pod's start waits for this module.
"""

from __future__ import annotations

from _struct import Struct
from errno import EINVAL, ENOENT

from ..kernel.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkSocket, attribute, attributes, message, nested
from ..kernel.routes import local_addresses
from ..kernel.sysctls import read_number
from ..model.addresses import Address
from ..model.attachments import PROTOCOLS
from ..model.errors import KernelRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Self

    from ..model.attachments import Attachment, PortMapping

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 1 << 8
_GET, _DELETE = 1, 2
_ORIGINAL, _REPLY, _STATUS, _ID, _ZONE, _FILTER, _STATUS_MASK = 1, 2, 3, 12, 18, 25, 26
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SOURCE = {4: 1, 6: 3}
_DESTINATION = {4: 2, 6: 4}
_PROTOCOL, _DESTINATION_PORT = 1, 3
_FILTER_FLAGS = {_ORIGINAL: 1, _REPLY: 2}
_BY_SOURCE, _BY_DESTINATION, _BY_PROTOCOL, _BY_DESTINATION_PORT = 1 << 0, 1 << 1, 1 << 3, 1 << 5
_REPLIED, _SOURCE_TRANSLATED, _DESTINATION_TRANSLATED = (
    1 << 1,
    1 << 4,
    1 << 5,
)  # IPS_SEEN_REPLY, IPS_SRC_NAT, IPS_DST_NAT
_FAMILIES = {4: 2, 6: 10}

_FAMILY_HEADER = Struct(">BBH")
_FLAGS = Struct("=L")
_STATUS_BITS = Struct(">L")
_DELETES_PER_REQUEST = 64
_SELECTIONS_AT_MOST = 40  # each takes the kernel 0.3 ms; to list all of UDP takes it 12
# Where the kernel puts destination address and port of the original tuple: it comes first, with source and destination, then
# protocol, source port and destination port. Two bytes of type are before each.
_TARGET_AT = {4: (24, 52), 6: (36, 76)}
_COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"


class Selection:
    """Flows of one family, and with certain values in the tuple of one direction; framed as the kernel compares them."""

    __slots__ = ("_family", "_filter")

    def __init__(
        self,
        family: int,
        direction: int = _ORIGINAL,
        compared: bytes = b"",
        flags: int = 0,
        *,
        untranslated: bool = False,
    ) -> None:
        """`untranslated` leaves out flows that already go to another destination than their first packet said."""
        self._family = family
        self._filter = b""
        if compared:
            self._filter += nested(direction, compared)
            self._filter += nested(_FILTER, attribute(_FILTER_FLAGS[direction], _FLAGS.pack(flags)))
        if untranslated:
            bit = _STATUS_BITS.pack(_DESTINATION_TRANSLATED)
            self._filter += attribute(_STATUS, _STATUS_BITS.pack(0)) + attribute(_STATUS_MASK, bit)

    def request(self, operation: int, flags: int) -> bytes:
        """Frame what is to be done with it."""
        header = _FAMILY_HEADER.pack(_FAMILIES[self._family], 0, 0)
        return message(_SUBSYSTEM | operation, NLM_F_REQUEST | flags, 1, header + self._filter)


class Flow:
    """A tracked connection: its tuples, its status, and what a delete needs to name it."""

    __slots__ = ("_family", "_parts")

    def __init__(self, payload: bytes) -> None:
        self._family = 4 if payload[0] == _FAMILIES[4] else 6
        self._parts = dict(attributes(payload, _FAMILY_HEADER.size))

    def _field(self, direction: int, part: int, kind: int) -> bytes:
        return dict(attributes(dict(attributes(self._parts[direction])).get(part, b""))).get(kind, b"")

    @property
    def sources(self) -> tuple[Address, Address]:
        """Who sent the first packet, and who answers it."""
        original, reply = (self._field(side, _TUPLE_IP, _SOURCE[self._family]) for side in (_ORIGINAL, _REPLY))
        return Address(self._family, original), Address(self._family, reply)

    @property
    def protocol(self) -> int:
        """The number of its protocol."""
        return self._field(_ORIGINAL, _TUPLE_PROTO, _PROTOCOL)[0]

    @property
    def target(self) -> tuple[Address, int]:
        """Address and port that the first packet was sent to, before any translation."""
        address = Address(self._family, self._field(_ORIGINAL, _TUPLE_IP, _DESTINATION[self._family]))
        return address, int.from_bytes(self._field(_ORIGINAL, _TUPLE_PROTO, _DESTINATION_PORT), "big")

    @property
    def is_translated(self) -> bool:
        """Whether it goes to another destination than its first packet said."""
        return bool(self._status & _DESTINATION_TRANSLATED)

    @property
    def is_source_translated(self) -> bool:
        """Whether it comes from another source than its first packet said."""
        return bool(self._status & _SOURCE_TRANSLATED)

    @property
    def is_answered(self) -> bool:
        """Whether a packet came back."""
        return bool(self._status & _REPLIED)

    @property
    def _status(self) -> int:
        return int.from_bytes(self._parts.get(_STATUS, b""), "big")

    def delete_request(self, sequence: int) -> bytes:
        """Frame its deletion."""
        kept = nested(_ORIGINAL, self._parts[_ORIGINAL])
        kept += b"".join(attribute(kind, self._parts[kind]) for kind in (_ID, _ZONE) if kind in self._parts)
        header = _FAMILY_HEADER.pack(_FAMILIES[self._family], 0, 0)
        return message(_SUBSYSTEM | _DELETE, NLM_F_REQUEST | NLM_F_ACK, sequence, header + kept)


class ConnectionTracker:
    """The kernel's table of flows, through one socket: use it in `with`. All of it raises KernelRefused."""

    __slots__ = ("_netlink",)

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(_NETLINK_NETFILTER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close_without_waiting()

    def delete_of_addresses(self, addresses: list[Address]) -> None:
        """Delete the entries from and to these container addresses: translated to its ports, or masqueraded from it."""
        for address in addresses:
            if address.family == 6:
                self.delete(list(filter(_from(address), self.flows(Selection(6), containing=address.packed))))
                continue
            source = nested(_TUPLE_IP, attribute(_SOURCE[4], address.packed))
            for direction in (_ORIGINAL, _REPLY):
                self._delete_selected(Selection(4, direction, source, _BY_SOURCE), _from(address))

    def delete_stale_udp(self, mappings: list[PortMapping], families: set[int]) -> None:
        """Delete the UDP entries to the host ports of `mappings`, so that a client that was sending already reaches the container.

        Only those to the host itself: a flow to the same port of another host is left alone, and where a port is shared, so are the
        flows to the other containers.
        """
        targets = _targets(mappings, families)
        four = {target: shared for target, shared in targets.items() if target[0].family == 4}
        if len(four) <= _SELECTIONS_AT_MOST:
            for (address, port), shared in four.items():
                self._delete_selected(_udp_to(address, port, untranslated=shared), _is_stale({(address, port): shared}))
        else:
            self._delete_listed(4, four)
        self._delete_listed(6, {target: shared for target, shared in targets.items() if target[0].family == 6})

    def delete_untranslated(self, attachments: list[Attachment]) -> int:
        """Delete the entries of connections that began while the rules were not there; return how many.

        conntrack would keep them as they are for as long as they go on. A client that kept sending to a host port is translated once its
        entry is deleted, and so is a container's request that went out with its own address. Entries that are translated are left alone.
        """
        families = {f for a in attachments for f in (*a.published_families, *a.outbound.masquerade)}
        if not families:
            return 0
        local: dict[int, list[Address]] = {4: [], 6: []}
        for address in local_addresses(families):
            local[address.family].append(address)
        ports = {
            (PROTOCOLS[port.protocol], address, port.port)
            for attachment in attachments
            for port in attachment.host_ports
            for address in ([port.address] if port.address is not None else local[port.family])
        }
        sources = {
            endpoint.address
            for attachment in attachments
            for endpoint in attachment.endpoints
            if endpoint.address.family in attachment.outbound.masquerade and not attachment.is_network
        }
        deleted = 0
        for family in families:
            flows = [flow for flow in self.flows(Selection(family)) if _began_without_rules(flow, ports, sources)]
            self.delete(flows)
            deleted += len(flows)
        return deleted

    def flows(
        self, selection: Selection, containing: bytes = b"", to_any: tuple[int, Collection[bytes]] | None = None
    ) -> Iterator[Flow]:
        """List what the selection matches; what does not contain the bytes, or goes to none of several ends, is passed over undecoded."""
        for reply in self._netlink.dump(selection.request(_GET, NLM_F_DUMP)):
            if reply.error_number:
                raise KernelRefused(
                    "list tracked connections",
                    reply.error_number,
                    "It needs module nf_conntrack_netlink, and Linux 5.8 or newer.",
                )
            if containing in reply.payload and (to_any is None or _is_to_any(reply.payload, *to_any)):
                yield Flow(reply.payload)

    def _delete_listed(self, family: int, targets: dict[tuple[Address, int], bool]) -> None:
        """List the UDP entries of a family to the ports of these targets, and delete those to one of them.

        The kernel selects by one port. For several, it lists all UDP, and what is not to one of the targets is passed over as bytes.
        """
        if not targets:
            return
        ports = {port for _, port in targets}
        ends = {address.packed + port.to_bytes(2, "big") for address, port in targets}
        selection = _udp(family, ports.pop() if len(ports) == 1 else 0)
        self.delete(list(filter(_is_stale(targets), self.flows(selection, to_any=(family, ends)))))

    def _delete_selected(self, selection: Selection, is_meant: Callable[[Flow], bool]) -> None:
        replies = self._netlink.exchange(selection.request(_DELETE, NLM_F_ACK))
        error = max((reply.error_number for reply in replies), default=0)
        if error in (EINVAL, ENOENT):  # before Linux 6.10 a tuple must name one flow
            self._delete_one_by_one(selection, is_meant)
        elif error:
            raise KernelRefused("delete conntrack entries", error)

    def _delete_one_by_one(self, selection: Selection, is_meant: Callable[[Flow], bool]) -> None:
        """Look at each flow once more: some older kernels compare the reply tuple wrongly."""
        self.delete(list(filter(is_meant, self.flows(selection))))

    def delete(self, flows: list[Flow]) -> None:
        """Delete these flows; one that has ended by itself is no failure."""
        for start in range(0, len(flows), _DELETES_PER_REQUEST):
            chunk = flows[start : start + _DELETES_PER_REQUEST]
            requests = b"".join(flow.delete_request(i) for i, flow in enumerate(chunk))
            for reply in self._netlink.exchange(requests):
                if reply.error_number not in (0, ENOENT):  # it may have ended by itself
                    raise KernelRefused("delete a conntrack entry", reply.error_number)


def _is_to_any(payload: bytes, family: int, ends: Collection[bytes]) -> bool:
    """Whether the first packet went to one of these addresses and ports, each as bytes; True where it is not at its usual place."""
    address, port = _TARGET_AT[family]
    if payload[address - 2] != _DESTINATION[family] or payload[port - 2] != _DESTINATION_PORT:
        return True
    return payload[address : address + (4 if family == 4 else 16)] + payload[port : port + 2] in ends


def _from(address: Address) -> Callable[[Flow], bool]:
    return lambda flow: address in flow.sources


def _is_stale(targets: dict[tuple[Address, int], bool]) -> Callable[[Flow], bool]:
    return lambda flow: flow.target in targets and not (targets[flow.target] and flow.is_translated)


def is_tracking() -> bool:
    """Whether the host tracks any flow at all."""
    return read_number(_COUNT) > 0


def _targets(mappings: list[PortMapping], families: set[int]) -> dict[tuple[Address, int], bool]:
    """Return the addresses and ports that the mappings are published on, and whether the port is shared."""
    local = local_addresses(families) if any(mapping.specific_host_ip is None for mapping in mappings) else []
    targets = {}
    for mapping in mappings:
        specific = mapping.specific_host_ip
        for address in local if specific is None else [specific]:
            if mapping.serves(address.family) and address.family in families:
                targets[address, mapping.host_port] = bool(mapping.sharing)
    return targets


def _udp(family: int, port: int) -> Selection:
    """Select UDP, to one port unless it is 0."""
    compared = attribute(_PROTOCOL, bytes((PROTOCOLS["udp"],))) + attribute(_DESTINATION_PORT, port.to_bytes(2, "big"))
    flags = _BY_PROTOCOL | (_BY_DESTINATION_PORT if port else 0)
    return Selection(family, _ORIGINAL, nested(_TUPLE_PROTO, compared), flags)


def _udp_to(address: Address, port: int, *, untranslated: bool) -> Selection:
    """Select UDP to one IPv4 address and port."""
    compared = nested(_TUPLE_IP, attribute(_DESTINATION[4], address.packed)) + nested(
        _TUPLE_PROTO,
        attribute(_PROTOCOL, bytes((PROTOCOLS["udp"],))) + attribute(_DESTINATION_PORT, port.to_bytes(2, "big")),
    )
    flags = _BY_DESTINATION | _BY_PROTOCOL | _BY_DESTINATION_PORT
    return Selection(4, _ORIGINAL, compared, flags, untranslated=untranslated)


def _began_without_rules(flow: Flow, ports: set[tuple[int, Address, int]], sources: set[Address]) -> bool:
    address, port = flow.target
    if (flow.protocol, address, port) in ports:
        return not flow.is_translated
    return flow.sources[0] in sources and not (flow.is_source_translated or flow.is_translated or flow.is_answered)
