"""The rules of the iptables backend: the fixed ones, and those of an attachment. No I/O.

    nat     PREROUTING, OUTPUT (to this host) -> QUANTUM-PREROUTING, QUANTUM-OUTPUT -> QUANTUM-HOST-IP, QUANTUM-ANY-IP: DNAT
            POSTROUTING -> QUANTUM-POSTROUTING -> QUANTUM-INBOUND (translated connections) -> QUANTUM-IN-hash: masquerade, so that replies return
                                               -> QUANTUM-OUTBOUND -> QUANTUM-OUT-hash: outbound NAT
    raw     PREROUTING -> QUANTUM-GUARD: 127.0.0.0/8 stays on this host
    filter  FORWARD (new, untranslated) -> QUANTUM-FORWARD: ports published on 127.0.0.1 only, isolated containers

A rule's comment is its owner, followed by the realm of the state directory that has the owner's record.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from ipaddress import ip_network
from typing import TYPE_CHECKING, NamedTuple

from ...model.addresses import Address, Subnet
from ...model.ranges import loopback_only
from ...model.units import HostPort

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...model.addresses import Endpoint
    from ...model.attachments import Attachment, PortMapping
    from ...model.units import Unit

_EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
_MULTICAST = {4: ("224.0.0.0/4", "255.255.255.255/32"), 6: ("ff00::/8",)}
_LOOPBACK = {4: "127.0.0.0/8", 6: "::1/128"}
_HASH_BYTES = 8
_DNAT = re.compile(
    r"-A QUANTUM-(?P<scope>HOST|ANY)-IP .*-p (?P<protocol>\w+) .*--dport (?P<port>\d+)(?::(?P<last>\d+))? .*-j DNAT "
)
_HOST_ADDRESS = re.compile(r"(?:-d|--ctorigdst) ([0-9a-f.:]+)")
_OF_ADDRESS = re.compile(r"-A QUANTUM-(?:INBOUND -d|OUTBOUND -s|FORWARD -d) (?P<network>[0-9a-f.:]+/\d+) ")


class Rule(NamedTuple):
    """A rule of a chain. specification: what follows the chain's name. first: it is inserted before the others."""

    table: str
    chain: str
    specification: str
    first: bool = False

    def line(self, operation: str = "") -> str:
        """Return the line for iptables-restore. operation: -D deletes the rule, -C checks that it exists; the default adds it."""
        return f"{operation or ('-I' if self.first else '-A')} {self.chain} {self.specification}"


FIXED_CHAINS = {
    "nat": (
        "QUANTUM-PREROUTING",
        "QUANTUM-OUTPUT",
        "QUANTUM-HOST-IP",
        "QUANTUM-ANY-IP",
        "QUANTUM-POSTROUTING",
        "QUANTUM-INBOUND",
        "QUANTUM-OUTBOUND",
    ),
    "raw": ("QUANTUM-GUARD",),
    "filter": ("QUANTUM-FORWARD",),
}


def fixed_rules(family: int) -> list[Rule]:
    """Return the rules that do not belong to a container: the first container brings them, and they stay."""
    rules = []
    for chain in ("QUANTUM-PREROUTING", "QUANTUM-OUTPUT"):
        if family == 6:
            rules.append(Rule("nat", chain, f"-d {_LOOPBACK[6]} -j RETURN"))
        rules += [Rule("nat", chain, f"-j {goal}") for goal in ("QUANTUM-HOST-IP", "QUANTUM-ANY-IP")]
        builtin = chain.removeprefix("QUANTUM-")
        rules.append(Rule("nat", builtin, f"-m addrtype --dst-type LOCAL -j {chain}", first=True))
    return [
        *rules,
        Rule("nat", "QUANTUM-POSTROUTING", "-m conntrack --ctstate DNAT -j QUANTUM-INBOUND"),
        Rule("nat", "QUANTUM-POSTROUTING", "-j QUANTUM-OUTBOUND"),
        Rule("nat", "POSTROUTING", "-j QUANTUM-POSTROUTING", first=True),
        Rule("raw", "QUANTUM-GUARD", f"-s {_LOOPBACK[family]} ! -i lo -j DROP"),
        Rule("raw", "QUANTUM-GUARD", f"-d {_LOOPBACK[family]} ! -i lo -j DROP"),
        Rule("raw", "PREROUTING", "-j QUANTUM-GUARD", first=True),
        Rule(
            "filter",
            "FORWARD",
            "-m conntrack --ctstate INVALID,NEW,UNTRACKED -m conntrack ! --ctstate DNAT -j QUANTUM-FORWARD",
            first=True,
        ),
    ]


def chains_of(comment: str) -> tuple[str, str]:
    """Return the names of an attachment's chains: for what comes in through its host ports, and for outbound NAT."""
    digest = blake2b(comment.encode(), digest_size=_HASH_BYTES).hexdigest()
    return f"QUANTUM-IN-{digest}", f"QUANTUM-OUT-{digest}"


def plan_rules(attachment: Attachment, family: int, units: Iterable[Unit] | None = None, realm: str = "") -> list[Rule]:
    """Return the rules of one family for these units, or for all units of the attachment, in the order in which they are added.

    realm: of the state directory that has the attachment's record, see State.realm.
    """
    wanted = [*attachment.address_units, *attachment.host_ports] if units is None else list(units)
    mappings = attachment.host_ports
    planner = _Planner(attachment, realm)
    ports = [unit for unit in wanted if isinstance(unit, HostPort) and unit.family == family]
    planned = [rule for port in ports for rule in planner.host_port(port, mappings[port])]
    addresses = {unit.first if isinstance(unit, Subnet) else unit for unit in wanted if not isinstance(unit, HostPort)}
    if any(address.family == family for address in addresses):
        planned += [*planner.inbound(family), *planner.outbound(family), *planner.isolation(family)]
    # With a mark, all ports and sources of the container need only one rule.
    return list(dict.fromkeys(planned))


def units_of(line: str, family: int) -> Iterator[Unit]:
    """Yield the units that a rule, as iptables-save lists it, gives to its owner."""
    if found := _DNAT.match(line):
        address = _HOST_ADDRESS.search(line) if found["scope"] == "HOST" else None
        host_ip = Address.parse(address[1]) if address else None
        first, last = int(found["port"]), int(found["last"] or found["port"])
        yield HostPort(family, found["protocol"], first, host_ip, last - first + 1)
    elif found := _OF_ADDRESS.match(line):
        network = Subnet.parse(found["network"])
        yield network.first if network.prefix_length == 8 * len(network.first.packed) else network


class _Planner:
    """Plans the rules of one attachment. `inward` and `outward` are its own chains."""

    def __init__(self, attachment: Attachment, realm: str) -> None:
        self._attachment = attachment
        name = attachment.id.owner + realm
        self._inward, self._outward = chains_of(name)
        escaped = name.replace("\\", "\\\\")
        self._comment = f'-m comment --comment "{escaped}"'

    def inbound(self, family: int) -> Iterator[Rule]:
        """Plan what replies need to return through this host, and close the ports that are published on 127.0.0.1 only."""
        endpoint = self._attachment.published_endpoint(family)
        mappings = [mapping for mapping in self._attachment.port_mappings if mapping.serves(family)]
        if endpoint is None or not mappings:
            return
        for mapping in mappings:
            for source in self._masqueraded(endpoint):
                yield from self._return_path(mapping, source)
        jump = f"-d {_host(endpoint)} {self._comment} -j {self._inward}"
        yield Rule("nat", "QUANTUM-INBOUND", jump, first=True)
        yield from self._loopback_only(mappings, endpoint)

    def host_port(self, port: HostPort, mapping: PortMapping) -> Iterator[Rule]:
        """Plan the translation of a host port."""
        endpoint = self._attachment.published_endpoint(port.family)
        assert endpoint is not None  # noqa: S101 - for the type checker: that is what published means
        family, mark = port.family, self._mark_target()
        chain = "QUANTUM-ANY-IP" if mapping.specific_host_ip is None else "QUANTUM-HOST-IP"
        conditions = self._attachment.inbound.conditions.get(family, ())
        match = " ".join([*_host_port_match(mapping, conditions), *conditions, self._comment])
        # iptables takes -s and -d once, and the conditions may have them: match what conntrack knows of the packet.
        from_ = "-m conntrack --ctorigsrc" if conditions else "-s"
        for source in self._masqueraded(endpoint) if mark else ():
            yield Rule("nat", chain, f"{from_} {source} {match} -j {mark}")
        destination = str(endpoint.address)
        if mapping.size == 1:  # of a range, each port leads to the same one
            destination = f"[{destination}]" if family == 6 else destination
            destination += f":{mapping.container_port}"
        yield Rule("nat", chain, f"{match} -j DNAT --to-destination {destination}")

    def isolation(self, family: int) -> Iterator[Rule]:
        """Plan the rules that drop what other networks send to the container."""
        for endpoint in self._attachment.endpoints if self._attachment.inbound.isolate else ():
            if endpoint.address.family == family:
                match = f"-d {_host(endpoint)}{_not_from_own_network(endpoint)} {self._comment}"
                yield Rule("filter", "QUANTUM-FORWARD", f"{match} -j DROP")

    def outbound(self, family: int) -> Iterator[Rule]:
        """Plan outbound NAT."""
        outbound = self._attachment.outbound
        if family not in outbound.masquerade:
            return
        comment, outward = self._comment, self._outward
        fixed = outbound.snat_addresses.get(family)
        target = "MASQUERADE" if fixed is None else f"SNAT --to-source {fixed}"
        endpoints = [endpoint for endpoint in self._attachment.endpoints if endpoint.address.family == family]
        for endpoint in endpoints:
            # Not ACCEPT: another program may have marked the packet to be masqueraded, see externalSetMarkChain.
            yield Rule("nat", outward, f"-s {self._source(endpoint)} -d {_subnet(endpoint)} {comment} -j RETURN")
        for subnet in outbound.no_masquerade:
            if subnet.family == family:
                yield Rule("nat", outward, f"-d {subnet} {comment} -j RETURN")
        for group in _MULTICAST[family]:
            yield Rule("nat", outward, f"-d {group} {comment} -j RETURN")
        interfaces = [f"-o {name} " for name in outbound.external_interfaces.get(family, ())]
        for interface in interfaces or [""]:
            yield Rule("nat", outward, f"{interface}{comment} -j {target}")
        for endpoint in endpoints:
            jump = f"-s {self._source(endpoint)} {comment} -j {outward}"
            yield Rule("nat", "QUANTUM-OUTBOUND", jump, first=True)

    def _masqueraded(self, endpoint: Endpoint) -> list[str]:
        """Return the sources that must be masqueraded, because replies to them would not return through this host."""
        family, inbound = endpoint.address.family, self._attachment.inbound
        if not inbound.snat:
            return []
        if inbound.masquerade_all:
            return [_EVERYWHERE[family]]
        return [_subnet(endpoint), _LOOPBACK[4]] if family == 4 else [_subnet(endpoint)]

    def _mark_target(self) -> str:
        """Return the target that marks a connection to be masqueraded later; empty if nothing is marked."""
        inbound = self._attachment.inbound
        if inbound.mark_bit is not None:
            return f"MARK --set-xmark {_mark(inbound.mark_bit)}"
        return inbound.set_mark_chain

    def _return_path(self, mapping: PortMapping, source: str) -> Iterator[Rule]:
        """Masquerade by the mark, or else by the original destination port. With an external chain, another program masquerades."""
        inbound = self._attachment.inbound
        if inbound.set_mark_chain:
            return
        if inbound.mark_bit is not None:
            match = f"-m mark --mark {_mark(inbound.mark_bit)}"
        else:
            match = f"-s {source} -p {mapping.protocol} -m conntrack --ctorigdstport {_ports(mapping)}"
        yield Rule("nat", self._inward, f"{match} {self._comment} -j MASQUERADE")

    def _loopback_only(self, mappings: list[PortMapping], endpoint: Endpoint) -> Iterator[Rule]:
        for protocol, first, last in sorted(loopback_only(mappings)):
            ports = str(first) if first == last else f"{first}:{last}"
            match = f"-d {_host(endpoint)}{_not_from_own_network(endpoint)} -p {protocol} -m {protocol} --dport {ports}"
            yield Rule("filter", "QUANTUM-FORWARD", f"{match} {self._comment} -j DROP")

    def _source(self, endpoint: Endpoint) -> str:
        return _subnet(endpoint) if self._attachment.is_network else _host(endpoint)


def _subnet(endpoint: Endpoint) -> str:
    return str(ip_network(str(endpoint), strict=False))


def _host(endpoint: Endpoint) -> str:
    return f"{endpoint.address}/{len(endpoint.address.packed) * 8}"


def _host_port_match(mapping: PortMapping, conditions: tuple[str, ...]) -> Iterator[str]:
    host_ip = mapping.specific_host_ip
    if host_ip is not None:
        to = "-m conntrack --ctorigdst" if conditions else "-d"
        yield f"{to} {host_ip}/{len(host_ip.packed) * 8}"
    yield f"-p {mapping.protocol} -m {mapping.protocol} --dport {_ports(mapping)}"


def _ports(mapping: PortMapping) -> str:
    """Return the host port as iptables writes it, or the range."""
    return str(mapping.host_port) if mapping.size == 1 else f"{mapping.host_port}:{mapping.last_host_port}"


def _mark(bit: int) -> str:
    return f"{1 << bit:#x}/{1 << bit:#x}"


def _not_from_own_network(endpoint: Endpoint) -> str:
    """Match packets from other networks than the container's own: all packets, if it has no route of its own."""
    return f" ! -i {endpoint.host_interface}" if endpoint.host_interface else ""
