"""The fixed ruleset of table `inet quantum`, as text.

Containers are elements of its sets and maps and never add a rule. docs/ruleset.md explains each chain.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING

from .layout import (
    ADDRESS4,
    ADDRESS6,
    DEFAULT_TIMEOUT_S,
    FIXED_SOURCE,
    FIXED_SOURCE_OF_NETWORK,
    FIXED_SOURCE_VIA,
    GOTO,
    INTERFACE,
    IPV6_LOCALHOST_ALIAS,
    JUMP,
    LAYOUT,
    LAYOUT_SET,
    MASQUERADED,
    ON_ONE_ADDRESS,
    ORDINARY,
    ORDINARY_LENGTHS,
    PORT,
    PROTOCOL,
    PUBLISH,
    SETS,
    SLOT,
    SLOTS,
    SPREAD_BY_CLIENT,
    SPREAD_EVENLY,
    TABLE,
    Policy,
    SetLayout,
    prefix_chain,
    subnets_set,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .rules import Element, Fields

# Ahead of Docker's, portmap's and kube-proxy's chains at -100 and 100: for a flow, the first NAT rule that
# matches is the only one, so a published port must not depend on who registered last.
_PRIORITY_IN = -110
_PRIORITY_OUT = 90

_CHAINS = f"""
	chain guard {{
		comment "route_localnet is on for some interfaces: 127.0.0.0/8 stays on this host all the same"
		type filter hook prerouting priority raw; policy accept;
		iif != "lo" ip daddr 127.0.0.0/8 drop
		iif != "lo" ip saddr 127.0.0.0/8 drop
		iif != "lo" ip6 daddr {IPV6_LOCALHOST_ALIAS} drop
		iif != "lo" ip6 saddr {IPV6_LOCALHOST_ALIAS} drop
	}}
	chain guard_forward {{
		comment "what is published on 127.0.0.1 only, or of isolated containers not at all, is not reached by routing either"
		type filter hook forward priority filter; policy accept;
		ct state new ct status ! dnat jump guard_new
		ct state {{ invalid, untracked }} jump guard_new
	}}
	chain guard_new {{
		ip daddr . iifname @home4 return
		ip6 daddr . iifname @home6 return
		ip daddr . meta l4proto . th dport @loopback_only4 drop
		ip6 daddr . meta l4proto . th dport @loopback_only6 drop
		ip daddr @isolated4 drop
		ip6 daddr @isolated6 drop
	}}
	chain localhost6_out {{
		comment "::1 cannot be routed to a container: before conntrack sees such packets, they get an alias"
		type route hook output priority raw; policy accept;
		ip6 saddr ::1 ip6 daddr ::1 meta l4proto . th dport @localhost6 ip6 saddr set {IPV6_LOCALHOST_ALIAS} ip6 daddr set {IPV6_LOCALHOST_ALIAS}
	}}
	chain localhost6_in {{
		comment "and the answers get their addresses back, after they were translated"
		type filter hook input priority 150; policy accept;
		iif != "lo" ip6 saddr {IPV6_LOCALHOST_ALIAS} ip6 daddr {IPV6_LOCALHOST_ALIAS} ip6 saddr set ::1 ip6 daddr set ::1
	}}
	chain established {{
		comment "only what is translated here"
		meta l4proto tcp ct timeout set "established_{DEFAULT_TIMEOUT_S}"
	}}
{{policies}}
	chain host_ports {{
		comment "::1 that has no alias is left alone: refused at once"
		ip6 daddr ::1 return
		ip daddr . meta l4proto . th dport vmap @host_ip_port_policies4
		ip daddr . meta l4proto . th dport @host_ip_ports4 goto publish_on_ip
		meta nfproto ipv4 meta l4proto . th dport vmap @port_policies4
		meta nfproto ipv4 meta l4proto . th dport @host_ports4 goto publish
		ip6 daddr . meta l4proto . th dport vmap @host_ip_port_policies6
		ip6 daddr . meta l4proto . th dport @host_ip_ports6 goto publish_on_ip
		meta nfproto ipv6 meta l4proto . th dport vmap @port_policies6
		meta nfproto ipv6 meta l4proto . th dport @host_ports6 goto publish
	}}
	chain prerouting {{
		comment "only what is for this host: traffic that passes through it keeps its destination"
		type nat hook prerouting priority {_PRIORITY_IN}; policy accept;
		meta l4proto {{ tcp, udp, sctp }} fib daddr type local goto host_ports
	}}
	chain output {{
		type nat hook output priority {_PRIORITY_IN}; policy accept;
		meta l4proto {{ tcp, udp, sctp }} fib daddr type local goto host_ports
	}}
	chain postrouting {{
		type nat hook postrouting priority {_PRIORITY_OUT}; policy accept;
		ct status dnat jump inbound
		meta nfproto vmap {{ ipv4 : goto outbound4, ipv6 : goto outbound6 }}
	}}
	chain inbound {{
		comment "scoped by the host port: other tables translate flows to the same containers"
{{inbound}}
{{own_of_destination}}
		ip daddr vmap @networks4
		ip6 daddr vmap @networks6
	}}
	chain outbound4 {{
{{own_of_source4}}
		ip saddr vmap @networks4
		ip saddr vmap @cidr_networks4
		ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} return
		ip saddr . oifname vmap @outbound_via4
		ip saddr . oifname @masqueraded_via4 goto masqueraded
		ip saddr vmap @outbound4
		ip saddr @masqueraded4 goto masqueraded
		ip saddr vmap @cidr_outbound4
	}}
	chain outbound6 {{
{{own_of_source6}}
		ip6 saddr vmap @networks6
		ip6 saddr vmap @cidr_networks6
		ip6 daddr ff00::/8 return
		ip6 saddr . oifname vmap @outbound_via6
		ip6 saddr . oifname @masqueraded_via6 goto masqueraded
		ip6 saddr vmap @outbound6
		ip6 saddr @masqueraded6 goto masqueraded
		ip6 saddr vmap @cidr_outbound6
	}}
	chain own {{
		comment "source and destination share the container's subnet"
{{own}}
		accept
	}}
"""

_FAMILIES = (("ipv4", "ip", 4, 32), ("ipv6", "ip6", 6, 128))
_PROTOCOLS = ("tcp", "udp", "sctp")
# How the key of a map with slots is said, which has no type of its own name. Any port would do.
_SLOT_FIELDS = {
    ADDRESS4: "ip daddr",
    ADDRESS6: "ip6 daddr",
    PROTOCOL: "meta l4proto",
    PORT: "tcp dport",
    SLOT: f"numgen inc mod {SLOTS}",
}


def _published(address: str, maps: str) -> list[str]:
    """Look a host port up; only for packets of the map's family, or its counters would count the other's too."""
    return [
        f"meta nfproto {nfproto} dnat {ip} to {address.format(ip)}meta l4proto . th dport map @{maps}{family}"
        for nfproto, ip, family, _ in _FAMILIES
    ]


def _spread(address: str, maps: str, slot: str) -> list[str]:
    """Deal connections to slots; nft wants the protocol said, since the map's type names one."""
    return [
        f"meta nfproto {nfproto} dnat {ip} to {address.format(ip)}meta l4proto . {protocol} dport . {slot.format(ip)} "
        f"map @{maps}{family}"
        for nfproto, ip, family, _ in _FAMILIES
        for protocol in _PROTOCOLS
    ]


_IN_TURN = f"numgen inc mod {SLOTS}"
_BY_CLIENT = f"jhash {{}} saddr mod {SLOTS}"
_THIS_ADDRESS = "{} daddr . "
_RULES = {
    PUBLISH: _published("", "endpoints"),
    PUBLISH + ON_ONE_ADDRESS: _published(_THIS_ADDRESS, "host_ip_endpoints"),
    SPREAD_EVENLY: _spread("", "slots", _IN_TURN),
    SPREAD_EVENLY + ON_ONE_ADDRESS: _spread(_THIS_ADDRESS, "host_ip_slots", _IN_TURN),
    SPREAD_BY_CLIENT: _spread("", "slots", _BY_CLIENT),
    SPREAD_BY_CLIENT + ON_ONE_ADDRESS: _spread(_THIS_ADDRESS, "host_ip_slots", _BY_CLIENT),
    MASQUERADED: ["masquerade"],
    FIXED_SOURCE: [f"snat {ip} to {ip} saddr map @snat{family}" for _, ip, family, _ in _FAMILIES],
    FIXED_SOURCE_OF_NETWORK: [f"snat {ip} to {ip} saddr map @cidr_snat{family}" for _, ip, family, _ in _FAMILIES],
    FIXED_SOURCE_VIA: [f"snat {ip} to {ip} saddr . oifname map @snat_via{family}" for _, ip, family, _ in _FAMILIES],
}


def _policy_chain(policy: Policy) -> str:
    """Write the chain of a policy. One with conditions goes on to the same without."""
    if policy.conditions:
        goal = policy.without_conditions.chain
        rules = [
            " ".join((f"meta nfproto {nfproto}", *policy.conditions.get(family, ()), f"goto {goal}"))
            for nfproto, _, family, _ in _FAMILIES
        ]
    elif policy.is_ordinary:
        rules = ["jump established", *_RULES[policy.kind]]
    else:
        rules = [f'meta l4proto tcp ct timeout set "{_timeout_name(policy)}"', *_RULES[policy.kind]]
    body = "".join(f"\t\t{rule}\n" for rule in rules)
    return f"\tchain {policy.chain} {{\n{body}\t}}\n"


def _timeout_name(policy: Policy) -> str:
    return f"established_{policy.timeout_s}"


def _timeout(policy: Policy) -> str:
    return (
        f"\tct timeout {_timeout_name(policy)} {{\n\t\tprotocol tcp;\n"
        f"\t\tpolicy = {{ established : {policy.timeout_s} }};\n\t}}\n"
    )


def _scoped(set_name: str, condition: str = "") -> list[str]:
    """Masquerade rules for a container's host ports; nft wants the protocol said before `ct original proto-dst`."""
    return [
        f"\t\tmeta nfproto {nfproto} meta l4proto {protocol} {condition}"
        f"{ip} daddr . meta l4proto . ct original proto-dst @{set_name}{family} masquerade"
        for nfproto, ip, family, _ in _FAMILIES
        for protocol in _PROTOCOLS
    ]


def _mask(family: int, length: int) -> IPv4Address | IPv6Address:
    return ip_network((0, length) if family == 4 else (b"\0" * 16, length)).netmask


def _own(family: int, ip: str, container: str, other: str) -> str:
    """Ask for each of the ordinary lengths whether the other end, masked, is the container's subnet."""
    return "\n".join(
        f"\t\t{ip} {container} . ( {ip} {other} & {_mask(family, length)} ) @{subnets_set(family, length)} goto own"
        for length in ORDINARY_LENGTHS[family]
    )


def _chains() -> str:
    localhost = [rule for rule in _scoped("published", "ip saddr 127.0.0.0/8 ") if "ipv4" in rule]
    localhost += [rule for rule in _scoped("published", f"ip6 saddr {IPV6_LOCALHOST_ALIAS} ") if "ipv6" in rule]
    inbound = "\n".join(_scoped("masquerade_all") + localhost)
    own = "\n".join(f"\t\tct status dnat{rule[1:].replace(chr(9), ' ')}" for rule in _scoped("published"))
    policies = "".join(map(_policy_chain, ORDINARY))
    parts = {"{inbound}": inbound, "{own}": own, "{policies}\n": policies}
    parts["{own_of_destination}"] = "\n".join(_own(family, ip, "daddr", "saddr") for _, ip, family, _ in _FAMILIES)
    parts |= {f"{{own_of_source{family}}}": _own(family, ip, "saddr", "daddr") for _, ip, family, _ in _FAMILIES}
    text = _CHAINS
    for place, rules in parts.items():
        text = text.replace(place, rules)
    return text


def _prefix_chains() -> str:
    """One chain for each prefix length: whether the other end, masked, is the container's subnet."""
    chains = []
    for _, ip, family, longest in _FAMILIES:
        for length in range(1, longest + 1):
            mask = _mask(family, length)
            chains.append(
                f"\tchain {prefix_chain(family, length)} {{\n"
                f"\t\t{ip} daddr . ( {ip} saddr & {mask} ) @subnets{family} goto own\n"
                f"\t\t{ip} saddr . ( {ip} daddr & {mask} ) @subnets{family} goto own\n"
                f"\t\t( {ip} saddr & {mask} ) . ( {ip} daddr & {mask} ) @subnets{family} goto own\n"
                "\t}\n"
            )
    return "".join(chains)


def _declare(layout: SetLayout) -> str:
    kind = "map" if layout.data else "set"
    counter = (" flags interval;" if layout.has_intervals else "") + (" counter;" if layout.counter else "")
    return f'\t{kind} {layout.name} {{ {_type(layout)};{counter} comment "{layout.purpose}"; }}\n'


def _type(layout: SetLayout) -> str:
    names = {JUMP: "verdict", GOTO: "verdict"}
    if SLOT in layout.key:
        names = _SLOT_FIELDS
    sides = [" . ".join(names.get(kind, kind) for kind in kinds) for kinds in (layout.key, layout.data) if kinds]
    return f"{'typeof' if SLOT in layout.key else 'type'} {' : '.join(sides)}"


def table_text(name: str, *, is_owned: bool = False) -> str:
    """Return the table without elements, as nft reads it; an owned one goes with the socket that makes it."""
    declared = "".join(_declare(layout) for layout in SETS.values())
    # Prefix chains jump to `own`, and are jumped to from maps only, so they come last.
    declared += (
        f"\tset {LAYOUT_SET} {{ type inet_service; flags constant; elements = {{ {LAYOUT} }}; "
        'comment "the version of this table, for programs that are older or newer"; }\n'
    )
    flags = "\tflags owner;\n" if is_owned else ""
    return f"table inet {name} {{\n{flags}{_timeout(ORDINARY[0])}{declared}{_chains()}{_prefix_chains()}}}\n"


def element_text(element: Element) -> str:
    """Return the command that adds an element, as nft reads it."""
    return f"add element inet {TABLE} {element.set_name} {{ {_element(element)} }}"


def elements_text(elements: Iterable[Element], table: str = TABLE) -> list[str]:
    """Return commands that add elements, one for each set: nft reads 60,000 that way in half the time."""
    by_set: dict[str, list[str]] = {}
    for element in elements:
        by_set.setdefault(element.set_name, []).append(_element(element))
    return [f"add element inet {table} {name} {{ {', '.join(listed)} }}" for name, listed in by_set.items()]


def _element(element: Element) -> str:
    layout = SETS[element.set_name]
    data = ""
    if layout.data in ((JUMP,), (GOTO,)):
        data = f" : {layout.data[0]} {element.data[0]}"
    elif layout.data:
        data = f" : {_fields_text(layout.data, element.data)}"
    return f'{_fields_text(layout.key, element.key)} comment "{element.owner}"{data}'


def _fields_text(kinds: tuple[str, ...], fields: Fields) -> str:
    return " . ".join(
        f'"{field}"' if kind == INTERFACE else str(field) for kind, field in zip(kinds, fields, strict=True)
    )


def policies_text(policies: list[Policy], table: str = TABLE) -> list[str]:
    """Return the commands that make the chains of policies, and their time-outs, as nft reads them."""
    chains = {policy.chain: policy for policy in policies}
    chains |= {p.chain: p for p in (policy.without_conditions for policy in policies) if not p.is_ordinary}
    commands = []
    for name, policy in sorted(chains.items()):
        commands += [f"add chain inet {table} {name}", f"flush chain inet {table} {name}"]
        if policy.timeout_s != DEFAULT_TIMEOUT_S:
            commands.append(f"table inet {table} {{\n{_timeout(policy)}}}")
    commands += [f"table inet {table} {{\n{_policy_chain(policy)}}}" for policy in chains.values()]
    return commands
