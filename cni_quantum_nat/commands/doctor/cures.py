"""Commands that let packets pass a filter: those packets alone, placed before the rule that drops them, in the words of the program that made it."""

from __future__ import annotations

import shutil
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple

from .chain import DEVICE, IP
from .journeys import LOCAL, OUTBOUND, REPLY, row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .chain import Chain
    from .evaluate import Fate
    from .journeys import Journey, Step, Way
    from .snapshot import Snapshot

AND = " && "
_FIREWALLD_CONF = Path("/etc/firewalld/firewalld.conf")
_MOST_PORTS = 7  # of iptables' multiport, which counts a row as two of its 15
_POLICY = "firewall-cmd --permanent --policy=quantum-nat"
_NEW_POLICY = "{ firewall-cmd --permanent --info-policy=quantum-nat >/dev/null 2>&1 || firewall-cmd --permanent --new-policy=quantum-nat; }"


class Permit(NamedTuple):
    """What lets some packets pass. A field that is empty is not compared.

    origin: the source address of the connection's first packet. is_dnat: whether its destination must be translated. state: of the connection.
    is_local: whether the destination must be an address of the host.
    """

    family: int
    incoming: str = ""
    outgoing: str = ""
    sources: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    protocol: str = ""
    source_ports: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    state: str = ""
    is_dnat: bool = False
    is_local: bool = False


def cure(host: Snapshot, fate: Fate, let_pass: Iterable[Permit], external: str) -> str:
    """Return the commands that let packets pass. external: where the replies arrive that nothing tells from others, if there are no permits."""
    permits = merged(let_pass)
    if not permits:
        return (
            f"Change it so that replies that arrive at {external or 'the external interface'} pass: before connection tracking, no rule tells "
            "them from other packets."
        )
    chain = fate.chain
    if chain.table == "inet firewalld":
        return _firewalld(permits)
    if chain.table in host.foreign.owned:
        rules = "; ".join(f"{_as_nft(permit, chain)} accept" for permit in permits)
        return f"Let the program that owns table {chain.table} accept these before: {rules}"
    if not chain.variant:
        return _nft(fate, permits)
    return _ufw(host, fate, permits) or _iptables(host, fate, permits)


# -- which packets


class Form(NamedTuple):
    """What the packets of a step are told by, whatever the container. by: a field of Permit. incoming, outgoing: fields of Way, or a name."""

    by: str
    incoming: str
    outgoing: str
    state: str = ""
    is_dnat: bool = False
    is_local: bool = False


def form_of(journey: Journey, step: Step) -> Form | None:
    """Return what packets of this step are told by; None if nothing tells them from other programs' packets."""
    packet, way = step.packet, journey.way
    tracked = packet.state != "invalid" and step.layer == IP
    state = packet.state if packet.state == "established" and tracked else ""
    form = Form("", _role(packet.incoming, way), _role(packet.outgoing, way), state)
    if packet.source == way.address:
        return form._replace(by="sources")
    if packet.destination == way.address:
        return form._replace(by="destinations", is_dnat=tracked and "dnat" in packet.status)
    if journey.kind == OUTBOUND:
        return form._replace(by="origins") if tracked else None
    if journey.phase == REPLY:
        return form._replace(by="source_ports")
    return form._replace(by="ports", is_local=step.layer != DEVICE)


def _role(name: str, way: Way) -> str:
    return next((role for role in ("external", "home", "port") if name and getattr(way, role) == name), name)


def permit(form: Form, journey: Journey) -> Permit:
    """Return what lets such packets of a container pass."""
    way = journey.way
    incoming, outgoing = getattr(way, form.incoming, form.incoming), getattr(way, form.outgoing, form.outgoing)
    given = Permit(way.family, incoming, outgoing, state=form.state)
    addresses, ports = (way.address,), (row(journey.port, journey.size),)
    if journey.kind == OUTBOUND:
        return _with(given, form.by, addresses)
    given = given._replace(protocol=journey.protocol)
    if form.by == "sources":
        return given._replace(sources=addresses, source_ports=ports)
    if form.by == "destinations":
        return given._replace(destinations=addresses, ports=ports, is_dnat=form.is_dnat)
    ports = (row(journey.host_port, journey.size),)
    if form.by == "source_ports":
        return given._replace(source_ports=ports)
    if journey.kind == LOCAL or journey.host_address != way.outer:
        return given._replace(destinations=(journey.host_address,), ports=ports)
    return given._replace(ports=ports, is_local=form.is_local)


_MERGED = ("destinations", "sources", "origins", "ports", "source_ports")


def merged(permits: Iterable[Permit]) -> list[Permit]:
    """Merge those that differ in one list of addresses or ports only, and leave out those of which others are the more general."""
    distinct = dict.fromkeys(permits)
    found = [permit for permit in distinct if not permit.state or permit._replace(state="") not in distinct]
    for name in _MERGED:
        groups: dict[Permit, list[Any]] = {}
        for permit in found:
            groups.setdefault(_with(permit, name, ()), []).extend(getattr(permit, name))
        found = [_with(permit, name, tuple(dict.fromkeys(values))) for permit, values in groups.items()]
    return found


def _with(permit: Permit, name: str, values: tuple[Any, ...]) -> Permit:
    fields: dict[str, Any] = {name: values}
    return permit._replace(**fields)


# -- as commands


def _nft(fate: Fate, permits: list[Permit]) -> str:
    chain = fate.chain
    if fate.number and chain.handles:
        place = f"insert rule {chain.table} {chain.name} position {chain.handles[fate.number - 1]}"
    else:
        place = f"add rule {chain.table} {chain.name}"
    script = "; ".join(f"{place} {_as_nft(permit, chain)} accept" for permit in permits)
    return f"nft {quote(script)}"


def _as_nft(permit: Permit, chain: Chain) -> str:
    family = chain.table.partition(" ")[0]
    ip, words = ("ip" if permit.family == 4 else "ip6"), list[str]()
    if chain.layer != DEVICE:
        words += [f'iifname "{permit.incoming}"'] if permit.incoming else []
        words += [f'oifname "{permit.outgoing}"'] if permit.outgoing else []
    words += [f"{ip} saddr {_set(permit.sources)}"] if permit.sources else []
    words += [f"{ip} daddr {_set(permit.destinations)}"] if permit.destinations else []
    if not (permit.sources or permit.destinations):
        words += {"inet": [f"meta nfproto ipv{permit.family}"], "netdev": [f"meta protocol {ip}"]}.get(family, [])
    words += [f"{permit.protocol} sport {_set(permit.source_ports)}"] if permit.source_ports else []
    words += [f"{permit.protocol} dport {_set(permit.ports)}"] if permit.ports else []
    words += ["ct status dnat"] if permit.is_dnat else []
    words += [f"ct state {permit.state}"] if permit.state else []
    words += [f"ct original {ip} saddr {_set(permit.origins)}"] if permit.origins else []
    words += ["fib daddr type local"] if permit.is_local else []
    return " ".join(words)


def _set(values: tuple[str, ...]) -> str:
    return values[0] if len(values) == 1 else f"{{ {', '.join(values)} }}"


def _iptables(host: Snapshot, fate: Fate, permits: list[Permit]) -> str:
    chain = fate.chain
    family = min(chain.families)
    table = chain.table.partition(" ")[2].partition(",")[0]
    program = _program(family, chain.variant) + ("" if table == "filter" else f" -t {table}")
    place = f"-I {chain.name} {fate.number}" if fate.number else f"-A {chain.name}"
    if _asks_docker_user(host, fate):
        place = "-I DOCKER-USER"
    lines = [f"{program} {place} {words} -j ACCEPT" for permit in permits for words in _as_iptables(permit, chain.hook)]
    return AND.join(lines)


def _program(family: int, variant: str) -> str:
    """Return the name of the program of this variant, or the plain name where there is only one."""
    prefix = "iptables" if family == 4 else "ip6tables"
    return f"{prefix}-{variant}" if shutil.which(f"{prefix}-{variant}") else prefix


def _asks_docker_user(host: Snapshot, fate: Fate) -> bool:
    """Whether Docker's chain for others' rules comes before the drop. Docker keeps its content, and changes the other chains."""
    chain = fate.chain
    base = host.foreign.chains.get((chain.table, "FORWARD"))
    if base is None or not (chain is base or chain.name.startswith("DOCKER")):
        return False
    jumps = [number for number, rule in enumerate(base.rules, 1) if {"jump": {"target": "DOCKER-USER"}} in rule]
    last = fate.number if chain is base and fate.number else len(base.rules) + 1
    return bool(jumps) and jumps[0] < last


def _as_iptables(permit: Permit, hook: str) -> Iterator[str]:
    words = [f"-i {permit.incoming}"] if permit.incoming and hook not in ("output", "postrouting") else []
    words += [f"-o {permit.outgoing}"] if permit.outgoing and hook not in ("prerouting", "input") else []
    words += [f"-s {','.join(permit.sources)}"] if permit.sources else []
    words += [f"-d {','.join(permit.destinations)}"] if permit.destinations else []
    words += [f"-p {permit.protocol}"] if permit.protocol else []
    conntrack = " --ctstate DNAT" if permit.is_dnat else f" --ctstate {permit.state.upper()}" if permit.state else ""
    after = ["-m addrtype --dst-type LOCAL"] if permit.is_local else []
    for origin in permit.origins or ("",):
        tracked = conntrack + (f" --ctorigsrc {origin}" if origin else "")
        for option, single in (("sport", permit.source_ports), ("dport", permit.ports)):
            for first in range(0, len(single), _MOST_PORTS):
                ports = ",".join(single[first : first + _MOST_PORTS]).replace("-", ":")
                match = f"--{option} {ports}" if len(single) == 1 else f"-m multiport --{option}s {ports}"
                yield " ".join([*words, match, *([f"-m conntrack{tracked}"] if tracked else []), *after])
        if not permit.source_ports and not permit.ports:
            yield " ".join([*words, *([f"-m conntrack{tracked}"] if tracked else []), *after])


def _ufw(host: Snapshot, fate: Fate, permits: list[Permit]) -> str:
    """Return ufw's commands; empty if it is not ufw's filter, or one whose order `ufw route` cannot change."""
    chain = fate.chain
    makes = any(table == chain.table and name.startswith("ufw") for table, name in host.foreign.chains)
    if not makes or chain.name not in (
        "FORWARD",
        "ufw-user-forward",
        "ufw6-user-forward",
        "ufw-reject-forward",
        "ufw6-reject-forward",
    ):
        return ""
    lines = []
    for permit in permits:
        if permit.state:
            return ""  # ufw itself lets replies pass, so this is not its usual filter
        way = "".join(
            f" {word} on {name}" for word, name in (("in", permit.incoming), ("out", permit.outgoing)) if name
        )
        for address in permit.destinations or permit.sources:
            where = f"to {address}" if permit.destinations else f"from {address}"
            for first in range(0, len(permit.ports) or 1, _MOST_PORTS):
                ports = ",".join(permit.ports[first : first + _MOST_PORTS]).replace("-", ":")
                proto = f" proto {permit.protocol}" if permit.protocol else ""
                lines.append(f"ufw route prepend allow{way}{proto} {where}{f' port {ports}' if ports else ''}")
    return AND.join(lines)


def _firewalld(permits: list[Permit]) -> str:
    """Return commands that add a policy, which firewalld asks before its zones."""
    lines = [
        _NEW_POLICY,
        *(f"{_POLICY} --add-{direction}-zone=ANY" for direction in ("ingress", "egress")),
    ]
    for permit in permits:
        for element, addresses in (("source", permit.sources), ("destination", permit.destinations)):
            for address in addresses:
                rule = f'rule family="ipv{permit.family}" {element} address="{address}"'
                ports = [f' port port="{port}" protocol="{permit.protocol}"' for port in permit.ports] or [""]
                lines += [f"{_POLICY} --add-rich-rule={quote(f'{rule}{port} accept')}" for port in ports]
    return AND.join([*lines, "firewall-cmd --reload"])


def strict_forward_ports() -> bool:
    """Whether firewalld is told to drop connections that other programs translate."""
    try:
        text = _FIREWALLD_CONF.read_text()
    except OSError:
        return False
    return any(line.replace(" ", "").lower() == "strictforwardports=yes" for line in text.splitlines())
