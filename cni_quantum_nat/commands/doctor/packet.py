"""`quantum-nat doctor --packet`: follows one packet through the look-ups that it would meet, without sending it."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ...backends.nftables.layout import IPV6_LOCALHOST_ALIAS, MASQUERADED, SHARED, SLOTS
from ...backends.nftables.rules import Element
from ...backends.nftables.table import NftablesTable
from ...kernel.routes import local_addresses
from ...model.addresses import Address
from ...model.attachments import PROTOCOLS
from ...model.errors import CniError, InvalidConfiguration
from ...ports.listeners import find_listeners
from ...state.directory import State
from .child import ask_in_namespace
from .evaluate import Packet, drops_of, fates
from .others import external_interface
from .snapshot import Snapshot

if TYPE_CHECKING:
    import argparse

    from ...model.attachments import Attachment

DELIVERED, DROPPED, REFUSED, UNKNOWN = "delivered", "dropped", "refused", "unknown"
_OUR_PRIORITY = -110
_LOOPBACK6 = Address.parse("::1")


class Lost(Exception):
    """The way ends here; the verdict, and why."""

    def __init__(self, verdict: str, why: str) -> None:
        super().__init__(why)
        self.verdict = verdict


def follow(arguments: argparse.Namespace) -> int:
    """Print the packet's way; 0 when it is delivered, else 1."""
    trace = Trace(Snapshot(State(arguments.state_dir)), *_parse(arguments.packet), _address(arguments.source))
    try:
        verdict, why = DELIVERED, trace.follow()
    except Lost as lost:
        verdict, why = lost.verdict, str(lost)
    if arguments.json:
        print(json.dumps({"steps": trace.steps, "verdict": verdict, "why": why}, indent=2))
    else:
        for number, step in enumerate(trace.steps, 1):
            print(f"{number}. {step}")
        print(f"{verdict}: {why}")
    return 0 if verdict == DELIVERED else 1


def _parse(text: str) -> tuple[str, Address, int]:
    """Read PROTOCOL:ADDRESS:PORT, an IPv6 address in brackets."""
    protocol, _, rest = text.partition(":")
    host, _, port = rest.rpartition(":")
    address = _address(host.removeprefix("[").removesuffix("]"))
    if (
        protocol not in PROTOCOLS
        or address is None
        or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536)
    ):
        raise InvalidConfiguration(
            f"{text!r} is not a packet", "Write tcp:192.0.2.9:8080 or udp:[2001:db8::9]:53; sctp is known too."
        )
    return protocol, address, int(port)


def _address(text: str | None) -> Address | None:
    if not text:
        return None
    try:
        return Address.parse(text)
    except ValueError as error:
        raise InvalidConfiguration(f"{text!r} is not an IP address") from error


class Trace:
    """The packet, and the steps of its way so far, in words."""

    def __init__(self, host: Snapshot, protocol: str, destination: Address, port: int, source: Address | None) -> None:
        if source is not None and source.family != destination.family:
            raise InvalidConfiguration(f"{source} cannot send to {destination}: they are of different families")
        self._host = host
        self._table = NftablesTable()
        self._protocol, self._destination, self._port, self._source = protocol, destination, port, source
        self._family = destination.family
        self.steps: list[str] = []

    def follow(self) -> str:
        """Follow it to its end, and say where that is; Lost when it does not arrive."""
        local = self._destination.is_loopback or self._destination in local_addresses({self._family})
        if self._source is not None and not local:
            return self._follow_out(self._source)
        if not local:
            raise Lost(
                UNKNOWN,
                f"{self._destination} is no address of this host; --from CONTAINER'S ADDRESS follows the way out",
            )
        self.steps.append(f"{self._destination} is an address of this host")
        return self._follow_in()

    def _follow_in(self) -> str:
        self._pass_guard()
        if self._destination == _LOOPBACK6:
            if self._found(Element("localhost6", (self._protocol, self._port), (), "")) is None:
                self.steps.append("::1 is left alone: IPv6 cannot route it to a container (ipv6Localhost lets it)")
                return self._deliver_to_host()
            self._destination = Address.parse(IPV6_LOCALHOST_ALIAS)
            self.steps.append(f"::1 becomes {IPV6_LOCALHOST_ALIAS} before it is looked up")
        self._meet_earlier_translators()
        held = self._look_up_port()
        goal = self._look_up_goal(held) if held is not None else None
        if held is None or goal is None:
            return self._deliver_to_host()
        address, port = goal
        interface = self._host.interface_towards(address)
        if not interface:
            raise Lost(DROPPED, f"the host has no route to {address}")
        self.steps.append(f"{address} is reached by interface {interface}")
        self._filter(interface, address, port)
        self._say_source(address, held)
        return self._deliver(address, port)

    def _pass_guard(self) -> None:
        outside = self._source is not None and not self._is_from_host
        if self._destination.is_loopback and outside:
            raise Lost(DROPPED, "chain guard: nobody but this host reaches 127.0.0.0/8 and ::1")

    @property
    def _is_from_host(self) -> bool:
        if self._source is None:
            return self._destination.is_loopback or str(self._destination) == IPV6_LOCALHOST_ALIAS
        return self._source.is_loopback or self._source in local_addresses({self._family})

    def _meet_earlier_translators(self) -> None:
        hook = "output" if self._is_from_host else "prerouting"
        incoming = "" if self._is_from_host else external_interface(self._host, self._family)
        packet = Packet(
            self._family, incoming, "", str(self._source or ""), str(self._destination), self._protocol, self._port
        )
        for chain in self._host.foreign.hooked(hook, self._family):
            for fate in fates(self._host.foreign, chain, packet)[0]:
                if fate.verdict.startswith("dnat") and chain.priority < _OUR_PRIORITY:
                    raise Lost(UNKNOWN, f"{fate.chain}, {fate.where}, translates it first: {fate.verdict}")
                if fate.verdict == "drop":
                    self.steps.append(f"{fate.chain}, {fate.where}, drops it, or may")

    def _look_up_port(self) -> Element | None:
        """Look in the order of chain host_ports: this address first, then any."""
        if not self._table.exists():
            self.steps.append("table inet quantum is missing (quantum-nat reconcile)")
            return None
        anywhere, here = (self._protocol, self._port), (self._destination, self._protocol, self._port)
        for name, key in ((f"host_ip_ports{self._family}", here), (f"host_ports{self._family}", anywhere)):
            found = self._found(Element(name, key, (), ""))
            if found is not None:
                self.steps.append(f"{found} matches: host port {self._port}/{self._protocol} is {_owner(found)}")
                policy = self._found(
                    Element(
                        name.replace("host_ports", "port_policies").replace("ip_ports", "ip_port_policies"), key, (), ""
                    )
                )
                if policy is not None:
                    self.steps.append(
                        f"{policy}: it is not an ordinary one; chain {policy.data[0]} says what becomes of it"
                    )
                return found
        self.steps.append(f"no element of host_ip_ports{self._family} and host_ports{self._family} matches")
        return None

    def _look_up_goal(self, held: Element) -> tuple[Address, int] | None:
        goals = held.set_name.replace("host_ports", "endpoints").replace("host_ip_ports", "host_ip_endpoints")
        if held.owner == SHARED:
            return self._look_up_slots(held)
        found = self._found(Element(goals, held.key, (), ""))
        if found is None:
            self.steps.append(f"{goals} has no element for it: it is not translated (quantum-nat reconcile)")
            return None
        self.steps.append(f"{found}, after {found.flows} connections")
        return _goal_of(found)

    def _look_up_slots(self, held: Element) -> tuple[Address, int] | None:
        name = held.set_name.replace("host_ports", "slots").replace("host_ip_ports", "host_ip_slots")
        slots = [
            slot for slot in self._table.find([Element(name, (*held.key, n), (), "") for n in range(SLOTS)]) if slot
        ]
        if not slots:
            self.steps.append(f"{name} has no element for it: it is not translated (quantum-nat reconcile)")
            return None
        goals = sorted({" . ".join(map(str, slot.data)) for slot in slots})
        self.steps.append(f"{name}: one of {', '.join(goals)}; the first is followed")
        return _goal_of(min(slots, key=lambda slot: str(slot.data)))

    def _filter(self, interface: str, address: Address, port: int) -> None:
        """Look at the filters of others on the way to the container; what the host sends itself is not forwarded."""
        if self._is_from_host:
            return
        packet = Packet(
            self._family,
            external_interface(self._host, self._family),
            interface,
            str(self._source or ""),
            str(address),
            self._protocol,
            port,
            "new",
            frozenset({"dnat"}),
        )
        self._pass_forward(packet)

    def _pass_forward(self, packet: Packet) -> None:
        chains = self._host.foreign.hooked("forward", self._family)
        for chain in chains:
            drop, certain = drops_of(self._host.foreign, chain, packet)
            if drop is not None and certain:
                raise Lost(DROPPED, f"{drop.chain}, {drop.where}, drops it")
            if drop is not None:
                self.steps.append(f"{drop.chain}, {drop.where}, may drop it")
        if chains:
            self.steps.append(f"{len(chains)} filter chains of others have been passed")

    def _say_source(self, address: Address, held: Element) -> None:
        key = (address, self._protocol, self._port)
        if self._found(Element(f"masquerade_all{self._family}", key, (), "")):
            self.steps.append("masqAll: the container sees the host as its source")
        elif self._found(Element(f"published{self._family}", key, (), "")) and self._returns_by_itself(held, address):
            self.steps.append("the container sees the host as its source, so that its answer comes back here")
        else:
            self.steps.append(f"the source, {self._source or 'whoever it is'}, stays as it is")

    def _returns_by_itself(self, held: Element, address: Address) -> bool:
        """Whether the container would answer past this host: localhost, or its own subnet."""
        source = self._source or (self._destination if self._destination.is_loopback else None)
        if source is None:
            return False
        attachment = self._attachment_of(address, held)
        subnets = [e.network for e in attachment.endpoints if e.address == address] if attachment else []
        return source.is_loopback or any(subnet.contains(source) for subnet in subnets)

    def _deliver(self, address: Address, port: int) -> str:
        attachment = self._attachment_of(address)
        where = f"{address} port {port}/{self._protocol}"
        if attachment is None or not attachment.netns:
            return where
        try:
            listening = ask_in_namespace(attachment.netns, lambda: self._listening_at(port))
        except CniError as error:
            raise Lost(UNKNOWN, f"{where}: {error.details or error.message}") from error
        if not listening:
            raise Lost(REFUSED, f"nothing listens on {where} in {attachment.id}")
        return f"{where} of {attachment.id}, where somebody listens"

    def _deliver_to_host(self) -> str:
        if self._listens():
            return f"a process of the host listens on port {self._port}/{self._protocol}"
        raise Lost(REFUSED, f"nobody has host port {self._port}/{self._protocol}")

    def _listens(self) -> bool:
        return self._listening_at(self._port)

    def _listening_at(self, port: int) -> bool:
        return self._protocol not in ("tcp", "udp") or any(find_listeners(self._protocol, port, port))

    def _follow_out(self, source: Address) -> str:
        attachment = self._attachment_of(source)
        if attachment is None:
            raise Lost(
                UNKNOWN, f"{source} is no container's on record, and {self._destination} no address of this host"
            )
        self.steps.append(f"{source} is {attachment.id}")
        interface = self._host.interface_towards(self._destination)
        if not interface:
            raise Lost(DROPPED, f"the host has no route to {self._destination}")
        self.steps.append(f"it leaves by interface {interface}")
        inside = self._host.interface_towards(source)
        self._pass_forward(
            Packet(self._family, inside, interface, str(source), str(self._destination), self._protocol, self._port)
        )
        self.steps.append(self._source_outside(source, interface, attachment))
        return f"{self._destination} by {interface}"

    def _source_outside(self, source: Address, interface: str, attachment: Attachment) -> str:
        if any(endpoint.network.contains(self._destination) for endpoint in attachment.endpoints):
            return "within the container's own subnet the source stays as it is"
        if ip_address(str(self._destination)).is_multicast:
            return "for multicast the source stays as it is"
        f, via = self._family, (source, interface)
        for name, key in (
            (f"masqueraded_via{f}", via),
            (f"outbound_via{f}", via),
            (f"masqueraded{f}", (source,)),
            (f"outbound{f}", (source,)),
        ):
            found = self._found(Element(name, key, (), ""))
            if found is None:
                continue
            fixed = self._found(Element(f"snat{'_via' if '_via' in name else ''}{f}", key, (), ""))
            if fixed is not None and not str(found.data[0] if found.data else MASQUERADED).startswith(MASQUERADED):
                return f"{found}: the source becomes {fixed.data[0]}"
            return f"{found}: the source becomes the address of {interface}"
        return "nothing masquerades it: the source stays as it is, and an answer may not find back"

    def _found(self, element: Element) -> Element | None:
        return self._table.find([element])[0]

    def _attachment_of(self, address: Address, held: Element | None = None) -> Attachment | None:
        """Return who has the address, or the element."""
        for attachment in self._host.records.attachments:
            if any(endpoint.address == address for endpoint in attachment.endpoints):
                return attachment
            if held is not None and attachment.id.owner == held.owner:
                return attachment
        return None


def _owner(element: Element) -> str:
    return "shared" if element.owner == SHARED else f"that of {element.owner}"


def _goal_of(element: Element) -> tuple[Address, int]:
    address, port = element.data
    assert isinstance(address, Address)  # noqa: S101 - for the type checker: so the map is laid out
    return address, int(str(port))
