"""`quantum-nat doctor --packet`: trace one packet through the rules without sending it."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ...backends.nftables.layout import BY_INTERFACE, BY_SOURCE, IPV6_LOCALHOST_ALIAS, SHARED, is_set, ranges_set
from ...backends.nftables.rules import Element, buckets_of, elements_of_port, filter_sets_of, lead_of, port_of
from ...backends.nftables.table import NftablesTable
from ...kernel.routes import local_addresses
from ...model.addresses import Address, Subnet
from ...model.attachments import LOCAL, PROTOCOLS
from ...model.errors import CniError, InvalidConfiguration
from ...model.units import HostPort
from ...ports.listeners import find_listeners
from ...state.directory import State
from .child import ask_in_namespace
from .evaluate import drops_of, fates
from .filters import external_interface
from .matches import Packet
from .snapshot import Snapshot

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ...backends.nftables.rules import Fields
    from ...model.attachments import Attachment

DELIVERED, DROPPED, REFUSED, UNKNOWN = "delivered", "dropped", "refused", "unknown"
_OUR_PRIORITY = -110
_LOOPBACK6 = Address.parse("::1")


class NotDelivered(Exception):
    """The packet is not delivered: the verdict, and why."""

    def __init__(self, verdict: str, why: str) -> None:
        super().__init__(why)
        self.verdict = verdict


def follow(arguments: argparse.Namespace) -> int:
    """Print the packet's path; return 0 if it is delivered, else 1."""
    trace = Trace(Snapshot(State(arguments.state_dir)), *_parse(arguments.packet), _address(arguments.source))
    try:
        verdict, why = DELIVERED, trace.follow()
    except NotDelivered as end:
        verdict, why = end.verdict, str(end)
    if arguments.json:
        print(json.dumps({"steps": trace.steps, "verdict": verdict, "why": why}, indent=2))
    else:
        for number, step in enumerate(trace.steps, 1):
            print(f"{number}. {step}")
        print(f"{verdict}: {why}")
    return 0 if verdict == DELIVERED else 1


def _parse(text: str) -> tuple[str, Address, int]:
    """Parse PROTOCOL:ADDRESS:PORT; IPv6 addresses are in brackets."""
    protocol, _, rest = text.partition(":")
    host, _, port = rest.rpartition(":")
    address = _address(host.removeprefix("[").removesuffix("]"))
    if (
        protocol not in PROTOCOLS
        or address is None
        or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536)
    ):
        raise InvalidConfiguration(
            f"{text!r} is not PROTOCOL:ADDRESS:PORT",
            "The protocol is tcp, udp or sctp; for example tcp:192.0.2.9:8080 or udp:[2001:db8::9]:53.",
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
    """A packet, and the steps of its path so far, as text."""

    def __init__(self, host: Snapshot, protocol: str, destination: Address, port: int, source: Address | None) -> None:
        if source is not None and source.family != destination.family:
            raise InvalidConfiguration(f"{source} and {destination} are of different address families")
        self._host = host
        self._table = NftablesTable(host.state.realm)
        self._protocol, self._destination, self._port, self._source = protocol, destination, port, source
        self._family = destination.family
        self.steps: list[str] = []

    def follow(self) -> str:
        """Follow the packet, and return where it is delivered; raise NotDelivered if it is not."""
        local = self._destination.is_loopback or self._destination in local_addresses({self._family})
        if self._source is not None and not local:
            return self._follow_out(self._source)
        if not local:
            raise NotDelivered(
                UNKNOWN,
                f"{self._destination} is not an address of this host; to trace a packet from a container, add --from ADDRESS",
            )
        self.steps.append(f"{self._destination} is an address of this host")
        return self._follow_in()

    def _follow_in(self) -> str:
        self._pass_guard()
        if self._destination == _LOOPBACK6:
            key = (self._protocol, self._port)
            if all(self._found(name, key) is None for name in ("host_ip_localhost", "localhost")):
                self.steps.append("::1 is not translated (ipv6Localhost is off)")
                return self._deliver_to_host()
            self._destination = Address.parse(IPV6_LOCALHOST_ALIAS)
            self.steps.append(f"::1 is first translated to {IPV6_LOCALHOST_ALIAS}")
        self._pass_earlier_nat()
        port_element = self._look_up_port()
        goal = self._look_up_goal(port_element) if port_element is not None else None
        if port_element is None or goal is None:
            return self._deliver_to_host()
        address, port = goal
        interface = self._host.interface_towards(address)
        if not interface:
            raise NotDelivered(DROPPED, f"the host has no route to {address}")
        self.steps.append(f"{address} is reached via interface {interface}")
        self._filter(interface, address, port)
        self._describe_source(address, port_element)
        return self._deliver(address, port)

    def _pass_guard(self) -> None:
        outside = self._source is not None and not self._is_from_host
        if self._destination.is_loopback and outside:
            raise NotDelivered(DROPPED, "chain guard: only this host itself reaches 127.0.0.0/8 and ::1")

    @property
    def _is_from_host(self) -> bool:
        if self._source is None:
            return self._destination.is_loopback or str(self._destination) == IPV6_LOCALHOST_ALIAS
        return self._source.is_loopback or self._source in local_addresses({self._family})

    def _pass_earlier_nat(self) -> None:
        hook = "output" if self._is_from_host else "prerouting"
        incoming = "" if self._is_from_host else external_interface(self._host, self._family)
        packet = Packet(
            self._family, incoming, "", str(self._source or ""), str(self._destination), self._protocol, self._port
        )
        for chain in self._host.foreign.hooked(hook, self._family):
            for fate in fates(self._host.foreign, chain, packet)[0]:
                if fate.verdict.startswith("dnat") and chain.priority < _OUR_PRIORITY:
                    raise NotDelivered(UNKNOWN, f"{fate.chain}, {fate.where}: translates it first ({fate.verdict})")
                if fate.verdict == "drop":
                    self.steps.append(f"{fate.chain}, {fate.where}: may drop it")

    def _look_up_port(self) -> Element | None:
        """Look up the host port as chain host_ports does: first for this address, then for any."""
        if not self._table.exists():
            self.steps.append("table inet quantum is missing (quantum-nat reconcile)")
            return None
        for address in (self._destination, None):
            port = HostPort(self._family, self._protocol, self._port, address)
            found, policy = (self._found(e.set_name[:-1], e.key) for e in elements_of_port(port)[:2])
            if found is not None:
                self.steps.append(f"{found} matches: host port {port} {_owner(found)}")
                if policy is not None:
                    self.steps.append(f"{policy}: chain {policy.data[0]} decides")
                    if not self._passes_filters(port, str(policy.data[0])):
                        return None
                return found
        self.steps.append(f"no element of host_ip_endpoints{self._family} or endpoints{self._family} matches")
        return None

    def _passes_filters(self, port: HostPort, chain: str) -> bool:
        """Return whether the port is published on the interface; raise NotDelivered if its filter by source refuses the client."""
        interfaces, sources, _ = ([*self._of_port(name, port)] for name in filter_sets_of(port))
        if BY_INTERFACE in chain:
            incoming, published = self._incoming(), [str(element.key[-1]) for element in interfaces]
            if incoming not in published:
                self.steps.append(
                    f"it comes in by {incoming or 'an unknown interface'}, not by {', '.join(published)} (publishOn)"
                )
                return False
            self.steps.append(f"it comes in by {incoming}, which is in publishOn")
        if BY_SOURCE in chain and self._is_from_host:
            self.steps.append("allowFrom lets in the host itself")
        elif BY_SOURCE in chain:
            allowed = [element.key[-1] for element in sources]
            listed = ", ".join(map(str, allowed)) or "nobody of this address family"
            if self._source is None:
                raise NotDelivered(UNKNOWN, f"allowFrom lets in {listed}: to say who asks, add --from ADDRESS")
            if not any(isinstance(subnet, Subnet) and subnet.contains(self._source) for subnet in allowed):
                raise NotDelivered(
                    DROPPED, f"chain {chain}: {self._source} is not in allowFrom, which lets in {listed}"
                )
            self.steps.append(f"{self._source} is in allowFrom: {listed}")
        return True

    def _of_port(self, set_name: str, port: HostPort) -> Iterator[Element]:
        """List the elements of a set that are for this port, or for a range that it is in."""
        for element in self._table.listed(set_name):
            if port_of(element).common_with(port_of(lead_of(port))):
                yield element

    def _incoming(self) -> str:
        """Return the interface by which the packet comes in; "lo" for the host itself."""
        if self._is_from_host:
            return LOCAL
        towards = self._host.interface_towards(self._source) if self._source is not None else ""
        return towards or external_interface(self._host, self._family)

    def _look_up_goal(self, port_element: Element) -> tuple[Address, int] | None:
        if port_element.owner == SHARED:
            return self._look_up_buckets(port_element)
        self.steps.append(f"{port_element} ({port_element.flows} connections so far)")
        return self._goal_of(port_element)

    def _look_up_buckets(self, port_element: Element) -> tuple[Address, int] | None:
        buckets = [bucket for bucket in self._table.find(buckets_of(port_of(port_element))) if bucket]
        if not buckets:
            self.steps.append("the shared port has no buckets: it is not translated (run `quantum-nat reconcile`)")
            return None
        goals = sorted({" . ".join(map(str, bucket.data)) for bucket in buckets})
        self.steps.append(f"{buckets[0].set_name}: one of {', '.join(goals)}; this trace follows the first")
        return self._goal_of(min(buckets, key=lambda bucket: str(bucket.data)))

    def _goal_of(self, element: Element) -> tuple[Address, int]:
        address, *ports = element.data  # an element for a range of ports names none
        assert isinstance(address, Address)  # noqa: S101 - for the type checker: the map's type begins so
        return address, int(str(ports[0])) if ports else self._port

    def _filter(self, interface: str, address: Address, port: int) -> None:
        """Check other programs' forward filters; they do not apply to packets from the host itself."""
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
                raise NotDelivered(DROPPED, f"{drop.chain}, {drop.where}: drops it")
            if drop is not None:
                self.steps.append(f"{drop.chain}, {drop.where}: may drop it")
        if chains:
            plural = "" if len(chains) == 1 else "s"
            self.steps.append(f"it passes {len(chains)} forward chain{plural} of other programs")

    def _describe_source(self, address: Address, port_element: Element) -> None:
        key = (address, self._protocol, self._port)
        if self._found("masquerade_all", key):
            self.steps.append("masqAll: the source becomes an address of the host")
        elif self._found("published", key) and self._bypasses_host(port_element, address):
            self.steps.append("the source becomes an address of the host, so that replies return through it")
        else:
            self.steps.append(f"the source address{f' {self._source}' if self._source else ''} stays unchanged")

    def _bypasses_host(self, port_element: Element, address: Address) -> bool:
        """Return whether replies would bypass this host: to localhost, or within the container's subnet."""
        source = self._source or (self._destination if self._destination.is_loopback else None)
        if source is None:
            return False
        attachment = self._attachment_of(address, port_element)
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
            raise NotDelivered(UNKNOWN, f"{where}: {error.details or error.message}") from error
        if not listening:
            raise NotDelivered(REFUSED, f"nothing listens on {where} in {attachment.id}")
        return f"{where} in {attachment.id}, where a process listens"

    def _deliver_to_host(self) -> str:
        if self._listens():
            return f"a process on the host listens on port {self._port}/{self._protocol}"
        raise NotDelivered(
            REFUSED, f"host port {self._port}/{self._protocol} is not published, and no process listens on it"
        )

    def _listens(self) -> bool:
        return self._listening_at(self._port)

    def _listening_at(self, port: int) -> bool:
        return self._protocol not in ("tcp", "udp") or any(find_listeners(self._protocol, port, port))

    def _follow_out(self, source: Address) -> str:
        attachment = self._attachment_of(source)
        if attachment is None:
            raise NotDelivered(
                UNKNOWN, f"{source} belongs to no container, and {self._destination} is not an address of this host"
            )
        self.steps.append(f"{source} belongs to {attachment.id}")
        interface = self._host.interface_towards(self._destination)
        if not interface:
            raise NotDelivered(DROPPED, f"the host has no route to {self._destination}")
        self.steps.append(f"it leaves via interface {interface}")
        inside = self._host.interface_towards(source)
        self._pass_forward(
            Packet(self._family, inside, interface, str(source), str(self._destination), self._protocol, self._port)
        )
        self.steps.append(self._source_outside(source, interface, attachment))
        return f"{self._destination} via {interface}"

    def _source_outside(self, source: Address, interface: str, attachment: Attachment) -> str:
        if any(endpoint.network.contains(self._destination) for endpoint in attachment.endpoints):
            return "the source address stays unchanged within the container's subnet"
        if ip_address(str(self._destination)).is_multicast:
            return "the source address stays unchanged for multicast"
        via = (source, interface)
        for name, key in (
            ("masqueraded_via", via),
            ("masqueraded", (source,)),
            ("fixed_via", via),
            ("fixed", (source,)),
        ):
            found = self._found(name, key)
            if found is None:
                continue
            fixed = self._found("snat", (source,)) if name.startswith("fixed") else None
            if fixed is not None:
                return f"{found}: the source becomes {fixed.data[0]}"
            return f"{found}: the source becomes the address of {interface}"
        return "it is not masqueraded: the source address stays unchanged, and replies may not return"

    def _found(self, name: str, key: Fields) -> Element | None:
        """Look up a key in a set, named without the family, and in its companion for ranges of ports."""
        names = [f"{named}{self._family}" for named in (name, ranges_set(name))]
        found = self._table.find([Element(named, key, (), "") for named in names if is_set(named)])
        return next((element for element in found if element is not None), None)

    def _attachment_of(self, address: Address, element: Element | None = None) -> Attachment | None:
        """Return the attachment with this address, or the owner of this element."""
        for attachment in self._host.records.attachments:
            if any(endpoint.address == address for endpoint in attachment.endpoints):
                return attachment
            if element is not None and attachment.id.owner == element.owner:
                return attachment
        return None


def _owner(element: Element) -> str:
    return "is shared" if element.owner == SHARED else f"belongs to {element.owner}"
