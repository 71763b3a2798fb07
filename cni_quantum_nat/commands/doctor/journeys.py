"""Which packets must pass the host for a container to work, and what they look like at each hook, in the order in which they meet them.

Connection tracking begins at priority -200 of prerouting and output. All NAT happens at -100 there, and at 100 of input and postrouting,
whatever priority a chain of type nat has: that only orders such chains among themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...model.addresses import Address
from .chain import BRIDGE, DEVICE, IP
from .matches import Packet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...model.addresses import Subnet

OUTSIDE = {4: "9.9.9.9", 6: "2620:fe::fe"}  # public addresses: filters often drop reserved ones
OUTSIDE_PORT = 443
EPHEMERAL_PORT = 50123  # what a client sends from
_LOOPBACK = "127.0.0.1"
_TRACKED, _DESTINATION, _SOURCE = -200, -100, 100
_FIRST, _LAST = -(1 << 31), (1 << 31) - 1
_DNAT, _SNAT = frozenset({"dnat"}), frozenset({"snat"})
_TO_HOST, _FROM_HOST, _FORWARDED = frozenset({"daddr"}), frozenset({"saddr"}), frozenset[str]()
_BOTH = _TO_HOST | _FROM_HOST

INBOUND, OUTBOUND, LOCAL = "inbound", "outbound", "local"
REQUEST, REPLY, LATER = (
    "request",
    "reply",
    "later",
)  # its first packet, the answer to that, and what follows in the first direction
_TCP_FLAGS = {REQUEST: frozenset({"syn"}), REPLY: frozenset({"syn", "ack"}), LATER: frozenset({"ack"})}


class Step(NamedTuple):
    """A packet at the chains of one hook with priorities from first to last."""

    layer: str
    hook: str
    packet: Packet
    first: int = _FIRST
    last: int = _LAST
    device: str = ""


class Way(NamedTuple):
    """Where a container is. family: of its address. home: the host interface with its gateway's address. port: the host's end of its veth pair, or home.

    external: the interface to the outside; empty if there is none. outer: the host's address there. gateway: its address in the container's
    subnet. They may be empty, which is unknown.
    """

    family: int
    home: str
    port: str
    external: str
    address: str
    outer: str
    gateway: str

    @property
    def is_bridged(self) -> bool:
        """Whether the container is attached to a bridge."""
        return self.port not in ("", self.home)


class Journey(NamedTuple):
    """Packets that must pass. kind: INBOUND, OUTBOUND or LOCAL. size: how many ports in a row it stands for. phase: REQUEST, REPLY or LATER."""

    kind: str
    way: Way
    protocol: str
    host_address: str
    host_port: int
    port: int
    size: int = 1
    phase: str = REQUEST
    allowed: tuple[Subnet, ...] = ()

    def __str__(self) -> str:
        w = self.way
        if self.kind == OUTBOUND:
            if self.phase == REPLY:
                return f"replies from outside to {w.address}"
            text = f"connections from {w.address} (for example to {OUTSIDE[w.family]})"
        elif self.phase == REPLY:
            return f"replies from {w.address}" + (" to this host" if self.kind == LOCAL else "")
        else:
            leads_to = (
                f"host port {row(self.host_port, self.size)}/{self.protocol} ({w.address}:{row(self.port, self.size)})"
            )
            text = f"connections {'from this host to 127.0.0.1,' if self.kind == LOCAL else 'to'} {leads_to}"
        return text if self.phase == REQUEST else f"all but the first packet of {text}"

    def steps(self) -> Iterator[Step]:
        """Yield the packet at each hook."""
        found = {
            (INBOUND, False): self._inbound,
            (INBOUND, True): self._inbound_reply,
            (OUTBOUND, False): self._outbound,
            (OUTBOUND, True): self._outbound_reply,
            (LOCAL, False): self._local,
            (LOCAL, True): self._local_reply,
        }[self.kind, self.phase == REPLY]()
        for step in found:
            follows = self.phase == LATER and step.packet.state == "new"
            yield step._replace(packet=step.packet._replace(state="established")) if follows else step

    @property
    def client(self) -> str:
        """The address that begins a connection to the container."""
        outside = OUTSIDE[self.way.family]
        if self.kind == LOCAL:
            return _LOOPBACK
        if not self.allowed or any(subnet.contains(Address.parse(outside)) for subnet in self.allowed):
            return outside
        return str(self.allowed[0].first)

    def _packet(self, source: str, source_port: int | None, destination: str, port: int | None) -> Packet:
        w, client = self.way, self.client
        original = (
            (w.address, client, self.port) if self.kind == OUTBOUND else (client, self.host_address, self.host_port)
        )
        return Packet(
            w.family, "", "", source, destination, self.protocol, port, "invalid", frozenset(), source_port,
            _FORWARDED, original, self.phase == REPLY, _TCP_FLAGS[self.phase] if self.protocol == "tcp" else None,
        )  # fmt: skip

    def _inbound(self) -> Iterator[Step]:
        w = self.way
        sent = self._packet(self.client, EPHEMERAL_PORT, self.host_address, self.host_port)
        sent = sent._replace(incoming=w.external, local=_TO_HOST)
        routed = sent._replace(destination=w.address, port=self.port, state="new", status=_DNAT, local=_FORWARDED)
        yield Step(DEVICE, "ingress", sent, device=w.external)
        yield from _prerouting(sent, sent._replace(state="new"), routed)
        yield Step(IP, "forward", routed._replace(outgoing=w.home))
        yield Step(IP, "postrouting", routed._replace(outgoing=w.home))
        yield from self._into_container(routed)

    def _inbound_reply(self) -> Iterator[Step]:
        w = self.way
        sent = self._packet(w.address, self.port, self.client, EPHEMERAL_PORT)
        routed = sent._replace(incoming=w.home, state="established", status=_DNAT)
        leaving = routed._replace(outgoing=w.external)
        yield from self._out_of_container(sent)
        yield from _prerouting(sent._replace(incoming=w.home), routed, routed)
        yield Step(IP, "forward", leaving)
        restored = leaving._replace(source=self.host_address, source_port=self.host_port, local=_FROM_HOST)
        yield from _postrouting(leaving, restored)
        yield Step(DEVICE, "egress", restored, device=w.external)

    def _outbound(self) -> Iterator[Step]:
        w = self.way
        sent = self._packet(w.address, EPHEMERAL_PORT, self.client, self.port)
        routed = sent._replace(incoming=w.home, state="new")
        leaving = routed._replace(outgoing=w.external)
        yield from self._out_of_container(sent)
        yield from _prerouting(sent._replace(incoming=w.home), routed, routed)
        yield Step(IP, "forward", leaving)
        translated = leaving._replace(source=w.outer, local=_FROM_HOST, status=_SNAT)
        yield from _postrouting(leaving, translated)
        yield Step(DEVICE, "egress", translated, device=w.external)

    def _outbound_reply(self) -> Iterator[Step]:
        w = self.way
        sent = self._packet(self.client, self.port, w.outer, EPHEMERAL_PORT)
        sent = sent._replace(incoming=w.external, local=_TO_HOST)
        tracked = sent._replace(state="established", status=_SNAT)
        routed = tracked._replace(destination=w.address, local=_FORWARDED)
        yield Step(DEVICE, "ingress", sent, device=w.external)
        yield from _prerouting(sent, tracked, routed)
        yield Step(IP, "forward", routed._replace(outgoing=w.home))
        yield Step(IP, "postrouting", routed._replace(outgoing=w.home))
        yield from self._into_container(routed)

    def _local(self) -> Iterator[Step]:
        w = self.way
        sent = self._packet(self.client, EPHEMERAL_PORT, self.host_address, self.host_port)
        sent = sent._replace(outgoing="lo", local=_BOTH)
        routed = sent._replace(destination=w.address, port=self.port, state="new", status=_DNAT, local=_FROM_HOST)
        yield Step(IP, "output", sent, last=_TRACKED - 1)
        yield Step(IP, "output", sent._replace(state="new"), _TRACKED, _DESTINATION)
        yield Step(IP, "output", routed, _DESTINATION + 1)  # still said to leave via lo
        leaving = routed._replace(outgoing=w.home)
        translated = leaving._replace(source=w.gateway, status=_DNAT | _SNAT)
        yield from _postrouting(leaving, translated)
        yield from self._into_container(translated)

    def _local_reply(self) -> Iterator[Step]:
        w = self.way
        sent = self._packet(w.address, self.port, w.gateway, EPHEMERAL_PORT)._replace(local=_TO_HOST)
        tracked = sent._replace(incoming=w.home, state="established", status=_DNAT | _SNAT)
        routed = tracked._replace(destination=self.client)
        yield from self._out_of_container(sent)
        yield from _prerouting(sent._replace(incoming=w.home), tracked, routed)
        yield Step(IP, "input", routed, last=_SOURCE)
        restored = routed._replace(source=self.host_address, source_port=self.host_port, local=_BOTH)
        yield Step(IP, "input", restored, _SOURCE + 1)

    def _into_container(self, packet: Packet) -> Iterator[Step]:
        w = self.way
        if w.is_bridged:
            yield Step(DEVICE, "egress", packet._replace(outgoing=w.home), device=w.home)
            for hook in ("output", "postrouting"):
                yield Step(BRIDGE, hook, packet._replace(incoming="", outgoing=w.port))
        yield Step(DEVICE, "egress", packet._replace(outgoing=w.port), device=w.port)

    def _out_of_container(self, packet: Packet) -> Iterator[Step]:
        w = self.way
        yield Step(DEVICE, "ingress", packet._replace(incoming=w.port), device=w.port)
        if w.is_bridged:
            for hook in ("prerouting", "input"):
                yield Step(BRIDGE, hook, packet._replace(incoming=w.port))
            yield Step(DEVICE, "ingress", packet._replace(incoming=w.home), device=w.home)


def row(first: int, size: int) -> str:
    """Return ports in a row as text."""
    return str(first) if size == 1 else f"{first}-{first + size - 1}"


def _prerouting(sent: Packet, tracked: Packet, routed: Packet) -> Iterator[Step]:
    yield Step(IP, "prerouting", sent, last=_TRACKED - 1)
    yield Step(IP, "prerouting", tracked, _TRACKED, _DESTINATION)
    yield Step(IP, "prerouting", routed, _DESTINATION + 1)


def _postrouting(leaving: Packet, translated: Packet) -> Iterator[Step]:
    yield Step(IP, "postrouting", leaving, last=_SOURCE)
    yield Step(IP, "postrouting", translated, _SOURCE + 1)
