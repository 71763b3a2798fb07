"""Table `inet quantum` as text: the sets, and the chains as they follow from the parts that the table has.

Containers are elements and never add a rule. A part adds sets, chains, and rules in the core's chains. Adding a part rewrites the chains
that change, in one transaction, so the order in which parts are added makes no difference. packaging/compile_rules.py translates what
is written here for batch.py, which the first call after a boot takes in place of libnftables.
"""

from __future__ import annotations

from ...model.addresses import Address
from .layout import (
    ADDRESS,
    BUCKET,
    BUCKETS,
    BY_INTERFACE,
    BY_SOURCE,
    CLOSED,
    CORE,
    DEFAULT_TIMEOUT_S,
    FIXED_SOURCE,
    GOTO,
    INTERFACE,
    IPV6_LOCALHOST_ALIAS,
    LAYOUT,
    LAYOUT_SET,
    LOCALHOST6,
    NETWORKS,
    NO_MASQUERADE,
    ON_ONE_ADDRESS,
    POLICIES,
    PORT,
    PORTS,
    PROTOCOL,
    PUBLISH,
    SETS,
    SPREAD_BY_CLIENT,
    SPREAD_EVENLY,
    SUBNET,
    TABLE,
    VIA,
    Policy,
    SetLayout,
    network_timeout_part,
    network_timeout_set,
    network_udp_timeout_part,
    network_udp_timeout_set,
    ranges_set,
    subnets_set,
    timeout_part,
    timeout_set,
    udp_timeout_part,
    udp_timeout_set,
    with_base,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from .rules import Element, Fields

# Ahead of Docker's, portmap's and kube-proxy's chains at -100 and 100: for a connection, the first NAT rule that
# matches is the only one, so a published port must not depend on who registered last.
_PRIORITY_IN = -110
_PRIORITY_OUT = 90
# Any number, as long as all rules that distribute by client use the same one, also after the table is rebuilt.
_SEED = 0x51756E74
_IP = {4: "ip", 6: "ip6"}
_NFPROTO = {4: "ipv4", 6: "ipv6"}
_ORIGINAL_PORT = "meta l4proto . ct original proto-dst"
_WITH_PORTS = "meta l4proto { tcp, udp, sctp }"


class Chain:
    """A chain. hook: its base chain declaration, empty for one that is jumped to. comment: why it is there."""

    __slots__ = ("comment", "hook", "rules")

    def __init__(self, comment: str, rules: list[str], hook: str = "") -> None:
        self.comment = comment
        self.rules = rules
        self.hook = hook

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and (self.declaration, self.rules) == (other.declaration, other.rules)

    __hash__ = None  # type: ignore[assignment]

    @property
    def declaration(self) -> str:
        """The chain without its rules, as nft reads it."""
        return f'\t\tcomment "{self.comment}"\n' + (f"\t\t{self.hook}\n" if self.hook else "")


def parts_of(elements: Iterable[Element]) -> set[str]:
    """Return the parts that a table needs for these elements, the core included."""
    needed = {SETS[element.set_name].part for element in elements}
    return {CORE}.union(*map(with_base, needed))


def present_parts(set_names: Iterable[str], *, has_timeout: bool) -> set[str]:
    """Return the parts of a table with these sets. has_timeout: whether it has the default time-out, a part without a set."""
    return (
        {SETS[name].part for name in set_names} | {CORE} | ({timeout_part(DEFAULT_TIMEOUT_S)} if has_timeout else set())
    )


def default_parts() -> set[str]:
    """Return the parts that every table has if the kernel supports them."""
    return {CORE, timeout_part(DEFAULT_TIMEOUT_S)}


def sets_of(parts: Collection[str]) -> list[SetLayout]:
    """Return the sets of these parts, in a fixed order."""
    for number in prefixes_of(parts, 4):
        SETS[subnets_set(4, number)]
    for number in prefixes_of(parts, 6):
        SETS[subnets_set(6, number)]
    for timeout_s in _timeouts(parts):
        for family in (4, 6) if timeout_s != DEFAULT_TIMEOUT_S else ():
            SETS[timeout_set(family, timeout_s)]
            SETS[network_timeout_set(family, timeout_s)]
    for timeouts_s in _udp_timeouts(parts):
        for family in (4, 6):
            SETS[udp_timeout_set(family, timeouts_s)]
            SETS[network_udp_timeout_set(family, timeouts_s)]
    return [
        layout
        for layout in SETS.values()
        if layout.part in parts and layout.name != timeout_set(layout.family, DEFAULT_TIMEOUT_S)
    ]


def _with_ranges(parts: Collection[str], name: str) -> list[str]:
    """Return the names, without the family, of a set of ports and of its companion for ranges, if these parts have them."""
    return [named for named in (name, ranges_set(name)) if SETS[f"{named}6"].part in parts]


def prefixes_of(parts: Collection[str], family: int) -> list[int]:
    """Return the prefix lengths among parts, the longest first."""
    start = f"prefix{family}_"
    return sorted((int(part.removeprefix(start)) for part in parts if part.startswith(start)), reverse=True)


def _timeouts(parts: Collection[str]) -> list[int]:
    """Return the time-outs of containers and of network CIDRs, each once."""
    return sorted({int(part.rpartition("_")[2]) for part in parts if part.startswith(("timeout_", "network_timeout_"))})


def _udp_timeouts(parts: Collection[str]) -> list[tuple[int, int]]:
    """Return the time-outs for UDP of containers and of network CIDRs, each pair once."""
    found = set()
    for part in parts:
        if part.startswith(("udp_timeout_", "network_udp_timeout_")):
            *_, unreplied, stream = part.split("_")
            found.add((int(unreplied), int(stream)))
    return sorted(found)


def _has_timeouts(parts: Collection[str]) -> bool:
    return bool(_timeouts(parts) or _udp_timeouts(parts))


def chains(parts: Collection[str]) -> dict[str, Chain]:
    """Return the chains of a table with these parts, by name, without those of policies."""
    found = {
        "guard": _guard(parts),
        "prerouting": Chain(
            "traffic that passes through this host keeps its destination",
            [f"{_WITH_PORTS} fib daddr type local goto host_ports"],
            f"type nat hook prerouting priority {_PRIORITY_IN}; policy accept;",
        ),
        "output": Chain(
            "the host itself reaches published ports too",
            [f"{_WITH_PORTS} fib daddr type local goto host_ports"],
            f"type nat hook output priority {_PRIORITY_IN}; policy accept;",
        ),
        "host_ports": _host_ports(parts),
        "postrouting": _postrouting(parts),
        "published": _published(parts),
        "interface_source": Chain(
            "outbound NAT by the address of the outgoing interface", [*_established(parts), "masquerade"]
        ),
    }
    for family in (4, 6):
        found[f"return_path{family}"] = _return_path(parts, family)
        found[f"outbound{family}"] = _outbound(parts, family)
        if NETWORKS in parts:
            found[f"outbound_network{family}"] = _outbound_network(parts, family)
        if FIXED_SOURCE in parts:
            found[f"fixed_source{family}"] = _fixed_source(parts, family, "snat")
        if NETWORKS in parts:
            found[f"network_fixed_source{family}"] = _fixed_source(parts, family, "network_snat")
    if POLICIES in parts:
        found[PUBLISH] = Chain("a port on all addresses of the host", [*_publish(parts, 4), *_publish(parts, 6)])
        found[PUBLISH + ON_ONE_ADDRESS] = Chain("a port on one address of the host", _publish_on_ip(parts))
    if CLOSED in parts:
        found |= _closed(parts)
    if LOCALHOST6 in parts:
        found |= _localhost6(parts)
    if _has_timeouts(parts):
        found["established"] = _established_chain(parts)
    return found


def _established(parts: Collection[str]) -> list[str]:
    return ["jump established"] if _has_timeouts(parts) else []


def _established_chain(parts: Collection[str]) -> Chain:
    """Write from the general to the particular: the last rule that matches decides."""
    others = [timeout_s for timeout_s in _timeouts(parts) if timeout_s != DEFAULT_TIMEOUT_S]
    rules = []
    if timeout_part(DEFAULT_TIMEOUT_S) in parts:
        rules.append(f"meta l4proto tcp {_set_timeout(DEFAULT_TIMEOUT_S)}")
    for timeout_s in others:
        if network_timeout_part(timeout_s) in parts:
            rules += [
                f"meta l4proto tcp {ip} saddr @{network_timeout_set(family, timeout_s)} {_set_timeout(timeout_s)}"
                for family, ip in _IP.items()
            ]
    for timeout_s in others:
        if timeout_part(timeout_s) in parts:
            for family, ip in _IP.items():
                name = timeout_set(family, timeout_s)
                rules.append(f"meta l4proto tcp {ip} saddr @{name} {_set_timeout(timeout_s)}")
                rules.append(f"meta l4proto tcp ct status dnat {ip} daddr @{name} {_set_timeout(timeout_s)}")
    rules += _udp_timeout_rules(parts)
    return Chain("for how long an established connection may be idle that is translated here, and no other", rules)


def _udp_timeout_rules(parts: Collection[str]) -> Iterator[str]:
    """Yield the rules for UDP, which has the kernel's time-outs by default; those of network CIDRs first."""
    for timeouts_s in _udp_timeouts(parts):
        if network_udp_timeout_part(timeouts_s) in parts:
            for family, ip in _IP.items():
                name = network_udp_timeout_set(family, timeouts_s)
                yield f"meta l4proto udp {ip} saddr @{name} {_set_udp_timeout(timeouts_s)}"
    for timeouts_s in _udp_timeouts(parts):
        if udp_timeout_part(timeouts_s) in parts:
            for family, ip in _IP.items():
                name = udp_timeout_set(family, timeouts_s)
                yield f"meta l4proto udp {ip} saddr @{name} {_set_udp_timeout(timeouts_s)}"
                yield f"meta l4proto udp ct status dnat {ip} daddr @{name} {_set_udp_timeout(timeouts_s)}"


def _set_timeout(timeout_s: int) -> str:
    return f'ct timeout set "{_timeout_name(timeout_s)}"'


def _timeout_name(timeout_s: int) -> str:
    return f"established_{timeout_s}"


def _set_udp_timeout(timeouts_s: tuple[int, int]) -> str:
    return f'ct timeout set "{_udp_timeout_name(timeouts_s)}"'


def _udp_timeout_name(timeouts_s: tuple[int, int]) -> str:
    unreplied_s, stream_s = timeouts_s
    return f"udp_{unreplied_s}_{stream_s}"


def timeouts_of(parts: Collection[str], kept: Collection[str] = ()) -> list[str]:
    """Return the declarations of time-outs. kept: the names of those that the table has already."""
    policies = {_timeout_name(timeout_s): ("tcp", f"established : {timeout_s}") for timeout_s in _timeouts(parts)}
    for unreplied_s, stream_s in _udp_timeouts(parts):
        name = _udp_timeout_name((unreplied_s, stream_s))
        policies[name] = ("udp", f"unreplied : {unreplied_s}, replied : {stream_s}")
    return [
        f"\tct timeout {name} {{ protocol {protocol}; policy = {{ {policy} }}; }}\n"
        for name, (protocol, policy) in policies.items()
        if name not in kept
    ]


def _guard(parts: Collection[str]) -> Chain:
    addresses = [("ip", "127.0.0.0/8")] + ([("ip6", IPV6_LOCALHOST_ALIAS)] if LOCALHOST6 in parts else [])
    rules = [f'iif != "lo" {ip} {end} {address} drop' for ip, address in addresses for end in ("daddr", "saddr")]
    return Chain(
        "route_localnet is on for some interfaces: 127.0.0.0/8 stays on this host all the same",
        rules,
        "type filter hook prerouting priority raw; policy accept;",
    )


def _host_ports(parts: Collection[str]) -> Chain:
    rules = [
        f"{ip} daddr . meta l4proto . th dport vmap @{name}{f}"
        for name in _with_ranges(parts, "host_ip_policies")
        for f, ip in _IP.items()
    ]
    rules += _publish_on_ip(parts)
    rules += [
        f"meta nfproto {_NFPROTO[f]} meta l4proto . th dport vmap @{name}{f}"
        for name in _with_ranges(parts, "policies")
        for f in _IP
    ]
    rules += [*_publish(parts, 4), "ip6 daddr ::1 return", *_publish(parts, 6)]
    return Chain("the most specific first; ::1 cannot be routed to a container, and is refused at once", rules)


def _publish(parts: Collection[str], family: int) -> list[str]:
    """Translate. Each rule is for one family, or its counters would count the other family's connections too."""
    return [
        f"meta nfproto {_NFPROTO[family]} dnat {_IP[family]} to meta l4proto . th dport map @{name}{family}"
        for name in _with_ranges(parts, "endpoints")
    ]


def _publish_on_ip(parts: Collection[str]) -> list[str]:
    return [
        f"dnat {ip} to {ip} daddr . meta l4proto . th dport map @{name}{f}"
        for name in _with_ranges(parts, "host_ip_endpoints")
        for f, ip in _IP.items()
    ]


def _postrouting(parts: Collection[str]) -> Chain:
    rules = ["ct status dnat jump published"]
    rules += [f"{ip} saddr @containers{f} jump outbound{f}" for f, ip in _IP.items()]
    if NETWORKS in parts:
        rules += [f"{ip} saddr @networks{f} jump outbound_network{f}" for f, ip in _IP.items()]
    return Chain(
        "after the routing decision: who needs another source address",
        rules,
        f"type nat hook postrouting priority {_PRIORITY_OUT}; policy accept;",
    )


def _published(parts: Collection[str]) -> Chain:
    rules = _by_original_port(parts, "published", "goto return_path{}")
    if _has_timeouts(parts):
        rules += _by_original_port(parts, "unmasqueraded", "goto established")
    return Chain("by the host port: other tables translate connections to the same containers", rules)


def _by_original_port(parts: Collection[str], name: str, then: str, families: Iterable[int] = (4, 6)) -> list[str]:
    return [
        f"{_WITH_PORTS} {_IP[f]} daddr . {_ORIGINAL_PORT} @{named}{f} {then.format(f)}"
        for named in _with_ranges(parts, name)
        for f in families
    ]


def _return_path(parts: Collection[str], family: int) -> Chain:
    ip = _IP[family]
    rules = _established(parts) + _by_original_port(parts, "masquerade_all", "masquerade", (family,))
    if family == 4:
        rules.append("ip saddr 127.0.0.0/8 masquerade")
    elif LOCALHOST6 in parts:
        rules.append(f"ip6 saddr {IPV6_LOCALHOST_ALIAS} masquerade")
    rules += [
        f"{ip} daddr . ( {ip} saddr & {_mask(family, n)} ) @{subnets_set(family, n)} masquerade"
        for n in prefixes_of(parts, family)
    ]
    return Chain("replies of these clients would not come back through this host", rules)


def _outbound(parts: Collection[str], family: int) -> Chain:
    ip = _IP[family]
    rules = [
        f"{ip} saddr . ( {ip} daddr & {_mask(family, n)} ) @{subnets_set(family, n)} return"
        for n in prefixes_of(parts, family)
    ]
    rules += _unmasqueraded_destinations(parts, family)
    if VIA in parts:
        rules.append(f"{ip} saddr . oifname @masqueraded_via{family} goto interface_source")
    rules.append(f"{ip} saddr @masqueraded{family} goto interface_source")
    if FIXED_SOURCE in parts:
        rules.append(f"{ip} saddr . oifname @fixed_via{family} goto fixed_source{family}")
        rules.append(f"{ip} saddr @fixed{family} goto fixed_source{family}")
    return Chain("from a container; never within its own subnet, never multicast", rules)


def _unmasqueraded_destinations(parts: Collection[str], family: int) -> list[str]:
    ip = _IP[family]
    rules = [f"{ip} saddr . {ip} daddr @no_masquerade{family} return"] if NO_MASQUERADE in parts else []
    return [*rules, "ip daddr >= 224.0.0.0 return" if family == 4 else "ip6 daddr ff00::/8 return"]


def _outbound_network(parts: Collection[str], family: int) -> Chain:
    ip = _IP[family]
    rules = []
    for number in prefixes_of(parts, family):
        mask = _mask(family, number)
        rules.append(f"( {ip} saddr & {mask} ) . ( {ip} daddr & {mask} ) @{subnets_set(family, number)} return")
    rules += _unmasqueraded_destinations(parts, family)
    rules += [
        f"oifname . {ip} saddr @network_masqueraded_via{family} goto interface_source",
        f"{ip} saddr @network_masqueraded{family} goto interface_source",
        f"oifname . {ip} saddr @network_fixed_via{family} goto network_fixed_source{family}",
        f"{ip} saddr @network_fixed{family} goto network_fixed_source{family}",
    ]
    return Chain("from a network CIDR of the Python API", rules)


def _fixed_source(parts: Collection[str], family: int, addresses: str) -> Chain:
    ip = _IP[family]
    return Chain(
        "outbound NAT by a fixed address", [*_established(parts), f"snat {ip} to {ip} saddr map @{addresses}{family}"]
    )


def _closed(parts: Collection[str]) -> dict[str, Chain]:
    return {
        "guard_forward": Chain(
            "what is published on 127.0.0.1 only, or of isolated containers not at all, is not reached by routing either",
            ["ct state new ct status ! dnat jump guard_new", "ct state { invalid, untracked } jump guard_new"],
            "type filter hook forward priority filter; policy accept;",
        ),
        "guard_new": Chain(
            "containers of the same network are let through",
            [
                *(f"{ip} daddr . iifname @home{f} return" for f, ip in _IP.items()),
                *(
                    f"{ip} daddr . meta l4proto . th dport @{name}{f} drop"
                    for name in _with_ranges(parts, "loopback_only")
                    for f, ip in _IP.items()
                ),
                *(f"{ip} daddr @isolated{f} drop" for f, ip in _IP.items()),
            ],
        ),
    }


def _localhost6(parts: Collection[str]) -> dict[str, Chain]:
    alias = f"ip6 saddr set {IPV6_LOCALHOST_ALIAS} ip6 daddr set {IPV6_LOCALHOST_ALIAS}"
    return {
        "localhost6_out": Chain(
            "::1 cannot be routed to a container: before conntrack sees such packets, they get an alias",
            [
                f"ip6 saddr ::1 ip6 daddr ::1 meta l4proto . th dport @{named}6 {alias}"
                for name in ("host_ip_localhost", "localhost")
                for named in _with_ranges(parts, name)
            ],
            "type route hook output priority raw; policy accept;",
        ),
        "localhost6_in": Chain(
            "and the answers get their addresses back, after they were translated",
            [
                f'iif != "lo" ip6 saddr {IPV6_LOCALHOST_ALIAS} ip6 daddr {IPV6_LOCALHOST_ALIAS} ip6 saddr set ::1 ip6 daddr set ::1'
            ],
            "type filter hook input priority 150; policy accept;",
        ),
    }


def mask(family: int, length: int) -> Address:
    """Return the netmask of a prefix length."""
    bits = 32 if family == 4 else 128
    return Address(family, ((1 << bits) - (1 << (bits - length))).to_bytes(bits // 8, "big"))


def _mask(family: int, length: int) -> str:
    return str(mask(family, length))


# nft needs the protocol by name, because the type of a map with buckets names one.
def _spread(where: str, prefix: str, bucket: str) -> list[str]:
    return [
        f"meta nfproto {_NFPROTO[f]} dnat {ip} to {where.format(ip)}meta l4proto . {protocol} dport . {bucket.format(ip)} "
        f"map @{prefix}buckets{f}"
        for f, ip in _IP.items()
        for protocol in ("tcp", "udp", "sctp")
    ]


_IN_TURN = f"numgen inc mod {BUCKETS}"
_BY_CLIENT = f"jhash {{}} saddr mod {BUCKETS} seed {_SEED:#x}"
_POLICY_RULES = {
    SPREAD_EVENLY: _spread("", "", _IN_TURN),
    SPREAD_EVENLY + ON_ONE_ADDRESS: _spread("{} daddr . ", "host_ip_", _IN_TURN),
    SPREAD_BY_CLIENT: _spread("", "", _BY_CLIENT),
    SPREAD_BY_CLIENT + ON_ONE_ADDRESS: _spread("{} daddr . ", "host_ip_", _BY_CLIENT),
}


def policies_text(policies: list[Policy]) -> list[str]:
    """Return the nft commands that create the chains of policies, or rewrite them."""
    written = policy_chains(policies)
    commands = []
    for name in written:
        commands += [f"add chain inet {TABLE} {name}", f"flush chain inet {TABLE} {name}"]
    return commands + [f"add rule inet {TABLE} {name} {rule}" for name, rules in written.items() for rule in rules]


def policy_chains(policies: Iterable[Policy]) -> dict[str, list[str]]:
    """Return the rules of the chains of policies, and of those that these continue to."""
    wanted = {written.chain: written for policy in policies for written in _with_following(policy)}
    return {name: _policy_rules(wanted[name]) for name in sorted(wanted)}


def _with_following(policy: Policy) -> Iterator[Policy]:
    """Yield a policy and those that it continues to. The chains of ordinary ones belong to part `policies`."""
    while not policy.is_plain:
        yield policy
        policy = policy.following
    if policy.kind in _POLICY_RULES:
        yield policy


def _policy_rules(policy: Policy) -> list[str]:
    """Write the rules of a policy. Connections that match its conditions, or pass its first filter, continue to the next one."""
    goal = f"goto {policy.following.chain}"
    if policy.conditions:
        return [
            " ".join((f"meta nfproto {_NFPROTO[family]}", *policy.conditions.get(family, ()), goal)) for family in _IP
        ]
    if policy.filters:
        write = {BY_INTERFACE: _interface_filter, BY_SOURCE: _source_filter}[policy.filters[0]]
        return write(ON_ONE_ADDRESS in policy.kind, goal)
    return _POLICY_RULES[policy.kind]


def _interface_filter(on_ip: bool, goal: str) -> list[str]:  # noqa: FBT001 - called through a table
    """Write the filter by incoming interface. The packets of local clients come in by none, and leave by lo."""
    return [
        f"{local}meta nfproto {_NFPROTO[f]} {_filter_key(f, on_ip=on_ip)} . {name} @{_filter_set('interfaces', f, on_ip=on_ip)} {goal}"
        for f in _IP
        for local, name in (("", "iifname"), ('oif "lo" ', "oifname"))
    ]


def _source_filter(on_ip: bool, goal: str) -> list[str]:  # noqa: FBT001 - as above
    """Write the filter by source. Local clients pass. Who is refused is counted, and dropped whatever the counting set has."""
    allowed = [
        f"meta nfproto {_NFPROTO[f]} {_filter_key(f, on_ip=on_ip)} . {ip} saddr @{_filter_set('sources', f, on_ip=on_ip)} {goal}"
        for f, ip in _IP.items()
    ]
    refused = [
        f"meta nfproto {_NFPROTO[f]} {_filter_key(f, on_ip=on_ip)} @{_filter_set('restricted', f, on_ip=on_ip)} drop"
        for f in _IP
    ]
    return [f'oif "lo" {goal}', *allowed, *refused, "drop"]


def _filter_key(family: int, *, on_ip: bool) -> str:
    return f"{f'{_IP[family]} daddr . ' if on_ip else ''}meta l4proto . th dport"


def _filter_set(name: str, family: int, *, on_ip: bool) -> str:
    return f"{'host_ip_' if on_ip else ''}{name}{family}"


def table_text(name: str, parts: Collection[str], *, boot_id: str = "", kept: Collection[str] = ()) -> str:
    """Return the table without elements, for nft.

    kept: the names of time-outs that the table has already.
    """
    comment = f' comment "boot {boot_id}"' if boot_id else ""
    version = layout_declaration(f"elements = {{ {LAYOUT}{comment} }}; ")
    return f"table inet {name} {{\n{_body(parts, version, kept)}}}\n"


def layout_declaration(elements: str = "") -> str:
    """Return the set whose only element is the version."""
    return (
        f"\tset {LAYOUT_SET} {{ type inet_service; flags constant; {elements}"
        'comment "the version of this table, for programs that are older or newer, and the boot that it is of"; }\n'
    )


def _body(parts: Collection[str], first: str, kept: Collection[str]) -> str:
    written = "".join(_chain_text(name, chain) for name, chain in chains(parts).items())
    return "".join((*timeouts_of(parts, kept), first, *declarations_of(parts), written))


def declarations_of(parts: Collection[str]) -> list[str]:
    """Return the declarations of sets and maps."""
    return [_declare(layout) for layout in sets_of(parts)]


def extension_text(present: Collection[str], wanted: Collection[str], kept: Collection[str] = ()) -> list[str]:
    """Return the commands that add parts to the table: new sets and chains, and the chains that change.

    kept: the names of time-outs that the table has already, in use by a part or not.
    """
    before = chains(present)
    changed = changed_chains(present, wanted)
    declared = without(timeouts_of(wanted, kept), timeouts_of(present))
    declared += without(declarations_of(wanted), declarations_of(present))
    flushes = [f"flush chain inet {TABLE} {name}" for name in changed if name in before]
    written = "".join(_chain_text(name, chain) for name, chain in changed.items())
    return [*flushes, f"table inet {TABLE} {{\n{''.join(declared)}{written}}}\n"]


def changed_chains(present: Collection[str], wanted: Collection[str]) -> dict[str, Chain]:
    """Return the chains that are new or have other rules when a table with some parts gets others."""
    before = chains(present)
    return {name: chain for name, chain in chains(wanted).items() if before.get(name) != chain}


def without(declarations: list[str], known: list[str]) -> list[str]:
    """Return the declarations that are not known, in their order."""
    return [declaration for declaration in declarations if declaration not in known]


def _chain_text(name: str, chain: Chain) -> str:
    rules = "".join(f"\t\t{rule}\n" for rule in chain.rules)
    return f"\tchain {name} {{\n{chain.declaration}{rules}\t}}\n"


def _declare(layout: SetLayout) -> str:
    kind = "map" if layout.data else "set"
    options = (" flags interval;" if layout.has_intervals else "") + (" counter;" if layout.counter else "")
    purpose = layout.purpose.replace('"', "'")
    return f'\t{kind} {layout.name} {{ {_type(layout)};{options} comment "{purpose}"; }}\n'


def _type(layout: SetLayout) -> str:
    address = "ipv4_addr" if layout.family == 4 else "ipv6_addr"
    names = {ADDRESS: address, SUBNET: address, GOTO: "verdict", PORTS: PORT}
    word = "type"
    if BUCKET in layout.key:  # which has no type of its own name; any port would do
        ip = _IP[layout.family]
        names = {ADDRESS: f"{ip} daddr", PROTOCOL: "meta l4proto", PORT: "tcp dport", BUCKET: _IN_TURN}
        word = "typeof"
    sides = [" . ".join(names.get(kind, kind) for kind in kinds) for kinds in (layout.key, layout.data) if kinds]
    return f"{word} {' : '.join(sides)}"


def element_text(element: Element) -> str:
    """Return the nft command that adds an element."""
    return f"add element inet {TABLE} {element.set_name} {{ {_element(element)} }}"


def elements_text(elements: Iterable[Element]) -> list[str]:
    """Return commands that add elements, one for each set: nft reads 60,000 elements in half the time that way."""
    by_set: dict[str, list[str]] = {}
    for element in elements:
        by_set.setdefault(element.set_name, []).append(_element(element))
    return [f"add element inet {TABLE} {name} {{ {', '.join(listed)} }}" for name, listed in by_set.items()]


def _element(element: Element) -> str:
    layout = SETS[element.set_name]
    data = ""
    if layout.data == (GOTO,):
        data = f" : goto {element.data[0]}"
    elif layout.data:
        data = f" : {_fields_text(layout.data, element.data)}"
    return f'{_fields_text(layout.key, element.key)} comment "{element.owner}"{data}'


def _fields_text(kinds: tuple[str, ...], fields: Fields) -> str:
    return " . ".join(
        f'"{field}"' if kind == INTERFACE else str(field) for kind, field in zip(kinds, fields, strict=True)
    )
