"""What an attachment needs, as rules of iptables, and what is fixed. No I/O.

    nat     PREROUTING, OUTPUT (to this host) -> QUANTUM-PREROUTING, QUANTUM-OUTPUT -> QUANTUM-HOST-IP, QUANTUM-ANY-IP: DNAT
            POSTROUTING -> QUANTUM-POSTROUTING -> QUANTUM-INBOUND (translated connections) -> QUANTUM-IN-hash: replies that must return
                                               -> QUANTUM-OUTBOUND -> QUANTUM-OUT-hash: outbound NAT
    raw     PREROUTING -> QUANTUM-GUARD: 127.0.0.0/8 stays on this host
    filter  FORWARD (new, untranslated) -> QUANTUM-FORWARD: what is published on 127.0.0.1 only, isolated containers

A rule's comment says who owns it.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from ipaddress import ip_network
from typing import TYPE_CHECKING, NamedTuple

from ...model.addresses import Address, Subnet
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
_DNAT = re.compile(r"-A QUANTUM-(?P<scope>HOST|ANY)-IP .*-p (?P<protocol>\w+) .*--dport (?P<port>\d+) .*-j DNAT ")
_HOST_ADDRESS = re.compile(r"(?:-d|--ctorigdst) ([0-9a-f.:]+)")
_OF_ADDRESS = re.compile(r"-A QUANTUM-(?:INBOUND -d|OUTBOUND -s|FORWARD -d) (?P<network>[0-9a-f.:]+/\d+) ")


class Rule(NamedTuple):
    """A rule: where it is, and what comes after the name of the chain. `first` puts it before the others."""

    table: str
    chain: str
    specification: str
    first: bool = False

    def line(self, operation: str = "") -> str:
        """Write it as iptables-restore reads it: added, or with -D or -C deleted or looked for."""
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
    """Return the rules that are there with the first container, and stay: within our chains, and the jumps to them."""
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


def own_chains(attachment: Attachment) -> tuple[str, str]:
    """Name the chains of the attachment: for what comes in through its host ports, and for outbound NAT."""
    return chains_of(attachment.id.owner)


def chains_of(owner: str) -> tuple[str, str]:
    digest = blake2b(owner.encode(), digest_size=_HASH_BYTES).hexdigest()
    return f"QUANTUM-IN-{digest}", f"QUANTUM-OUT-{digest}"


def plan_rules(attachment: Attachment, family: int, units: Iterable[Unit] | None = None) -> list[Rule]:
    """Return the rules of one family that belong to these units, or to all that the attachment wants, in the order of their making."""
    wanted = [*attachment.address_units, *attachment.host_ports] if units is None else list(units)
    mappings = attachment.host_ports
    ports = [unit for unit in wanted if isinstance(unit, HostPort) and unit.family == family]
    planned = [rule for port in ports for rule in _plan_host_port(attachment, port, mappings[port])]
    addresses = {unit.first if isinstance(unit, Subnet) else unit for unit in wanted if not isinstance(unit, HostPort)}
    if any(address.family == family for address in addresses):
        planned += [
            *_plan_inbound(attachment, family),
            *_plan_outbound(attachment, family),
            *_plan_isolation(attachment, family),
        ]
    # One mark speaks for all ports and sources of the container.
    return list(dict.fromkeys(planned))


def units_of(line: str, family: int) -> Iterator[Unit]:
    """Yield the units that a rule of ours says somebody has, as iptables-save lists it."""
    if found := _DNAT.match(line):
        address = _HOST_ADDRESS.search(line) if found["scope"] == "HOST" else None
        host_ip = Address.parse(address[1]) if address else None
        yield HostPort(family, found["protocol"], int(found["port"]), host_ip)
    elif found := _OF_ADDRESS.match(line):
        network = Subnet.parse(found["network"])
        yield network.first if network.prefix_length == 8 * len(network.first.packed) else network


def _comment(attachment: Attachment) -> str:
    owner = attachment.id.owner.replace("\\", "\\\\")
    return f'-m comment --comment "{owner}"'


def _subnet(endpoint: Endpoint) -> str:
    return str(ip_network(str(endpoint), strict=False))


def _source(attachment: Attachment, endpoint: Endpoint) -> str:
    return _subnet(endpoint) if attachment.is_network else _host(endpoint)


def _host(endpoint: Endpoint) -> str:
    return f"{endpoint.address}/{len(endpoint.address.packed) * 8}"


def _plan_inbound(attachment: Attachment, family: int) -> Iterator[Rule]:
    endpoint = attachment.published_endpoint(family)
    mappings = [mapping for mapping in attachment.port_mappings if mapping.serves(family)]
    if endpoint is None or not mappings:
        return
    inward, _ = own_chains(attachment)
    comment = _comment(attachment)
    for mapping in mappings:
        for source in _masqueraded(attachment, endpoint):
            yield from _plan_return_path(attachment, mapping, source)
    yield Rule("nat", "QUANTUM-INBOUND", f"-d {_host(endpoint)} {comment} -j {inward}", first=True)
    yield from _plan_loopback_only(mappings, endpoint, comment)


def _masqueraded(attachment: Attachment, endpoint: Endpoint) -> list[str]:
    """Return the sources whose address has to be changed, or replies would not come back through this host."""
    family = endpoint.address.family
    if not attachment.inbound.snat:
        return []
    if attachment.inbound.masquerade_all:
        return [_EVERYWHERE[family]]
    return [_subnet(endpoint), _LOOPBACK[4]] if family == 4 else [_subnet(endpoint)]


def _plan_host_port(attachment: Attachment, port: HostPort, mapping: PortMapping) -> Iterator[Rule]:
    endpoint = attachment.published_endpoint(port.family)
    assert endpoint is not None  # noqa: S101 - for the type checker: that is what published means
    family, mark = port.family, _mark_target(attachment)
    chain = "QUANTUM-ANY-IP" if mapping.specific_host_ip is None else "QUANTUM-HOST-IP"
    conditions = attachment.inbound.conditions.get(family, ())
    match = " ".join([*_host_port_match(mapping, conditions), *conditions, _comment(attachment)])
    # Conditions may name addresses, and iptables takes -s and -d once: look at what conntrack keeps of the packet.
    from_ = "-m conntrack --ctorigsrc" if conditions else "-s"
    for source in _masqueraded(attachment, endpoint) if mark else ():
        yield Rule("nat", chain, f"{from_} {source} {match} -j {mark}")
    destination = f"[{endpoint.address}]" if family == 6 else str(endpoint.address)
    yield Rule("nat", chain, f"{match} -j DNAT --to-destination {destination}:{mapping.container_port}")


def _host_port_match(mapping: PortMapping, conditions: tuple[str, ...]) -> Iterator[str]:
    host_ip = mapping.specific_host_ip
    if host_ip is not None:
        to = "-m conntrack --ctorigdst" if conditions else "-d"
        yield f"{to} {host_ip}/{len(host_ip.packed) * 8}"
    yield f"-p {mapping.protocol} -m {mapping.protocol} --dport {mapping.host_port}"


def _mark(bit: int) -> str:
    return f"{1 << bit:#x}/{1 << bit:#x}"


def _mark_target(attachment: Attachment) -> str:
    """Return where a connection is sent that is to be masqueraded, when it is marked rather than looked up later."""
    inbound = attachment.inbound
    if inbound.mark_bit is not None:
        return f"MARK --set-xmark {_mark(inbound.mark_bit)}"
    return inbound.set_mark_chain


def _plan_return_path(attachment: Attachment, mapping: PortMapping, source: str) -> Iterator[Rule]:
    """Masquerade by the mark, by the original destination port, or not: another program's chain does it."""
    inward, _ = own_chains(attachment)
    inbound = attachment.inbound
    if inbound.set_mark_chain:
        return
    if inbound.mark_bit is not None:
        match = f"-m mark --mark {_mark(inbound.mark_bit)}"
    else:
        match = f"-s {source} -p {mapping.protocol} -m conntrack --ctorigdstport {mapping.host_port}"
    yield Rule("nat", inward, f"{match} {_comment(attachment)} -j MASQUERADE")


def _plan_loopback_only(mappings: list[PortMapping], endpoint: Endpoint, comment: str) -> Iterator[Rule]:
    open_ports = {(m.protocol, m.container_port) for m in mappings if not m.on_loopback_only}
    closed = {(m.protocol, m.container_port) for m in mappings if m.on_loopback_only} - open_ports
    for protocol, port in sorted(closed):
        match = f"-d {_host(endpoint)}{_not_from_home(endpoint)} -p {protocol} -m {protocol} --dport {port}"
        yield Rule("filter", "QUANTUM-FORWARD", f"{match} {comment} -j DROP")


def _not_from_home(endpoint: Endpoint) -> str:
    """Return the match for packets that do not come from the container's own network; without a route of its own, all do not."""
    return f" ! -i {endpoint.host_interface}" if endpoint.host_interface else ""


def _plan_isolation(attachment: Attachment, family: int) -> Iterator[Rule]:
    for endpoint in attachment.endpoints if attachment.inbound.isolate else ():
        if endpoint.address.family == family:
            match = f"-d {_host(endpoint)}{_not_from_home(endpoint)} {_comment(attachment)}"
            yield Rule("filter", "QUANTUM-FORWARD", f"{match} -j DROP")


def _plan_outbound(attachment: Attachment, family: int) -> Iterator[Rule]:
    outbound = attachment.outbound
    if family not in outbound.masquerade:
        return
    comment, (_, outward) = _comment(attachment), own_chains(attachment)
    fixed = outbound.snat_addresses.get(family)
    target = "MASQUERADE" if fixed is None else f"SNAT --to-source {fixed}"
    endpoints = [endpoint for endpoint in attachment.endpoints if endpoint.address.family == family]
    for endpoint in endpoints:
        # Not ACCEPT: another program may have marked the packet to be masqueraded, see externalSetMarkChain.
        yield Rule("nat", outward, f"-s {_source(attachment, endpoint)} -d {_subnet(endpoint)} {comment} -j RETURN")
    for subnet in outbound.no_masquerade:
        if subnet.family == family:
            yield Rule("nat", outward, f"-d {subnet} {comment} -j RETURN")
    for group in _MULTICAST[family]:
        yield Rule("nat", outward, f"-d {group} {comment} -j RETURN")
    interfaces = [f"-o {name} " for name in outbound.external_interfaces.get(family, ())]
    for interface in interfaces or [""]:
        yield Rule("nat", outward, f"{interface}{comment} -j {target}")
    for endpoint in endpoints:
        yield Rule("nat", "QUANTUM-OUTBOUND", f"-s {_source(attachment, endpoint)} {comment} -j {outward}", first=True)
