"""Writes what follows from the code that makes the table: python packaging/ruleset.py.

The listings of docs/development/ruleset.md, and by compile_rules.py the rules that a call makes without libnftables.
"""

from __future__ import annotations

import re
import runpy
from difflib import ndiff
from pathlib import Path
from typing import TYPE_CHECKING

from cni_quantum_nat.backends.nftables import layout
from cni_quantum_nat.backends.nftables.layout import ON_ONE_ADDRESS, SPREAD_BY_CLIENT, SPREAD_EVENLY, TABLE, Policy
from cni_quantum_nat.backends.nftables.text import (
    Chain,
    chains,
    default_parts,
    policies_text,
    sets_of,
    table_text,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

PAGE = Path(__file__).parents[1] / "docs" / "development" / "ruleset.md"

# Prefix lengths and time-outs are parts by number; these stand for all of them.
_PREFIXES = (layout.prefix_part(4, 24), layout.prefix_part(6, 64))
_TIMEOUT = layout.timeout_part(7200)
_NETWORK_TIMEOUT = layout.network_timeout_part(7200)
_UDP_TIMEOUT = layout.udp_timeout_part((30, 600))
_NETWORK_UDP_TIMEOUT = layout.network_udp_timeout_part((30, 600))
_OTHER_RANGES = tuple(
    map(
        layout.ranges_part,
        (
            layout.HOST_IP,
            layout.POLICIES,
            layout.UNMASQUERADED,
            layout.MASQUERADE_ALL,
            layout.LOCALHOST6,
            layout.CLOSED,
        ),
    )
)
# What is shown together, and what makes a call add it.
PARTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (_PREFIXES, "A container is published or masqueraded, and its subnet has this prefix length; here /24 and /64."),
    ((layout.HOST_IP,), "A port is published on one host address (`hostIP`)."),
    ((layout.POLICIES,), "A port is shared, or its network has conditions."),
    ((layout.SHARED_PORTS,), "A port is shared (`sharedPorts`). Part `policies` comes with it."),
    ((layout.UNMASQUERADED,), 'A network with `"snat": false` publishes a port.'),
    ((layout.MASQUERADE_ALL,), "A network with `masqAll` publishes a port."),
    ((layout.LOCALHOST6,), "A network with `ipv6Localhost` publishes a port that `::1` reaches."),
    ((layout.CLOSED,), "A container is isolated (`isolate`), or a port is published on 127.0.0.1 only."),
    ((layout.VIA,), "A container is masqueraded on certain interfaces only (`externalInterface`)."),
    ((layout.FIXED_SOURCE,), "A container has a fixed source address (`snatAddress`)."),
    ((layout.NO_MASQUERADE,), "A network has `noMasqueradeTo`."),
    ((layout.NETWORKS,), "The Python API gives a network CIDR outbound NAT."),
    (
        (layout.ranges_part(layout.CORE),),
        "A container publishes at least 16 ports in a row, each on the same port of the host: a range.",
    ),
    (_OTHER_RANGES, "A range meets what the part of the same name without `_ranges` is for. That part comes with it."),
    ((layout.SOURCES,), "A network or a port mapping has `allowFrom`. Part `policies` comes with it."),
    ((layout.INTERFACES,), "A network or a port mapping has `publishOn`. Part `policies` comes with it."),
    ((_TIMEOUT,), "A network's `conntrackTimeout` is not 3600; here 7200."),
    ((_NETWORK_TIMEOUT,), "The same for a network CIDR of the Python API. Part `networks` comes with it."),
    ((_UDP_TIMEOUT,), "A network has `udpTimeout` or `udpStreamTimeout`; here 600 for the latter."),
    ((_NETWORK_UDP_TIMEOUT,), "The same for a network CIDR of the Python API. Part `networks` comes with it."),
)
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_PRIORITIES = {"raw": -300, "filter": 0}
_BASE = re.compile(r"type \w+ hook (\w+) priority (\S+);")
_LEADS_TO = re.compile(r"\b(?:jump|goto) (\w+)")


def core() -> str:
    """Return the table that every host has, each set and chain below its reason."""
    text = table_text(TABLE, default_parts()).expandtabs(4)
    text = re.sub(r'^( +)(.*) comment "([^"]*)"; \}$', r"\1# \3\n\1\2 }", text, flags=re.MULTILINE)
    text = re.sub(r'^( +)(chain \w+ \{)\n +comment "([^"]*)"$', r"\n\1# \3\n\1\2", text, flags=re.MULTILINE)
    return _fenced("", text)


def parts() -> str:
    """Return for each part what it adds to the core, and when."""
    return "\n".join(
        f"### {_title(names)}\n\n{why}\n\n{_fenced('diff', ''.join(_added(names)))}" for names, why in PARTS
    )


def walk() -> str:
    """Return the chains in the order in which a packet meets them, when the table has every part."""
    known = _every_chain()
    seen: set[str] = set()
    bases = sorted((name for name, chain in known.items() if chain.hook), key=lambda name: _place(known[name]))
    lines = []
    for name in bases:
        hook, priority = _hook_of(known[name])
        lines.append(f"- **{hook}**, priority {priority}: {_described(name, known)}\n")
        lines += _below(name, known, seen, 1)
    return "".join(lines)


BLOCKS = {"walk": walk, "core": core, "parts": parts}


def with_listings(page: str) -> str:
    """Return the page with each listing in its place."""
    for name, listing in BLOCKS.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{listing()}\n{end}{rest.partition(end)[2]}"
    return page


def _every_part() -> set[str]:
    return default_parts() | {name for names, _ in PARTS for name in names}


def _every_chain() -> dict[str, Chain]:
    """Return the chains of a table with every part, and those of shared ports and of ports with one filter."""
    spread = {
        SPREAD_EVENLY: "a shared port: to the container that has the next bucket",
        SPREAD_BY_CLIENT: "a shared port: to the container that has the bucket of the client's address",
    }
    filtered = {
        layout.BY_INTERFACE: "a port that is published on some interfaces; other packets are not translated",
        layout.BY_SOURCE: "a port for some clients; packets of others are counted and dropped",
    }
    found = chains(_every_part())
    for where, at in (("", ""), (ON_ONE_ADDRESS, ", on one host address")):
        for kind, comment in spread.items():
            found[kind + where] = Chain(comment + at, _rules_of(Policy(kind + where)))
        for name, comment in filtered.items():
            policy = Policy(layout.PUBLISH + where, None, (name,))
            found[policy.chain] = Chain(comment + at, _rules_of(policy))
    return found


def _rules_of(policy: Policy) -> list[str]:
    prefix = f"add rule inet {TABLE} {policy.chain} "
    return [line.removeprefix(prefix) for line in policies_text([policy]) if line.startswith(prefix)]


def _belongs_to(name: str, parts: Collection[str]) -> bool:
    """Whether a chain of policies is shown with these parts."""
    filters = [part for ending, part in layout.FILTERS.items() if name.endswith(ending)]
    return (filters[0] if filters else layout.SHARED_PORTS) in parts


def _hook_of(chain: Chain) -> tuple[str, str]:
    found = _BASE.match(chain.hook)
    if found is None:
        raise ValueError(f"no hook and priority in {chain.hook!r}")
    return found[1], found[2]


def _place(chain: Chain) -> tuple[int, int]:
    hook, priority = _hook_of(chain)
    return _HOOKS.index(hook), _PRIORITIES[priority] if priority in _PRIORITIES else int(priority)


def _described(name: str, known: dict[str, Chain]) -> str:
    ours = name in chains(default_parts())
    return f"`{name}`{'' if ours else ' (' + _part_of_chain(name) + ')'}: {known[name].comment}"


def _part_of_chain(name: str) -> str:
    """Return the part that brings a chain."""
    for names, _ in PARTS:
        if name in chains(default_parts() | set(names)):
            return f"part {_title(names)}"
    return next(f"part `{names[0]}`" for names, _ in PARTS if _belongs_to(name, names))


def _below(name: str, known: dict[str, Chain], seen: set[str], depth: int) -> Iterator[str]:
    """Yield the chains that a chain leads to, in the order of its rules; what was described before is only named."""
    found: dict[str, None] = {}
    for rule in known[name].rules:
        found |= dict.fromkeys(_LEADS_TO.findall(rule))
        if " vmap " in rule:
            at = ON_ONE_ADDRESS if "host_ip_" in rule else ""
            found |= dict.fromkeys(kind + at for kind in (layout.PUBLISH, SPREAD_EVENLY, SPREAD_BY_CLIENT))
            found |= dict.fromkeys(layout.PUBLISH + at + ending for ending in layout.FILTERS)
    for called in found:
        indent = "  " * depth
        if called in seen:
            yield f"{indent}- `{called}`, as above\n"
            continue
        seen.add(called)
        yield f"{indent}- {_described(called, known)}\n"
        yield from _below(called, known, seen, depth + 1)


def _title(names: Collection[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _shown_before(names: tuple[str, ...]) -> set[str]:
    """Return the parts that are there before these: the core's, and those that come with them."""
    return default_parts().union(*map(layout.with_base, names)) - set(names)


def _added(names: tuple[str, ...]) -> Iterator[str]:
    """Yield what a part adds: sets, and chains with the place of each new rule."""
    present, wanted = _shown_before(names), _shown_before(names) | set(names)
    known = {found.name for found in sets_of(present)}
    declared = re.findall(
        r"^\t((?:set|map) (\w+) .*) comment \"([^\"]*)\"; \}$", table_text(TABLE, wanted), re.MULTILINE
    )
    for declaration, name, purpose in declared:
        if name not in known and name != layout.LAYOUT_SET:
            yield f"+ {declaration} }}  # {purpose}\n"
    before = chains(present)
    of_policies = {name: chain for name, chain in _every_chain().items() if name not in chains(_every_part())}
    after = chains(wanted) | {name: chain for name, chain in of_policies.items() if _belongs_to(name, names)}
    for name, chain in after.items():
        if before.get(name) == chain:
            continue
        sign = " " if name in before else "+"
        yield f"{sign} chain {name} {{  # {chain.comment}\n"
        former = [before[name].hook, *before[name].rules] if name in before else []
        for line in ndiff([rule for rule in former if rule], [rule for rule in (chain.hook, *chain.rules) if rule]):
            if not line.startswith("?"):
                yield f"{line[0]}     {line[2:]}\n"
        yield f"{sign} }}\n"


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(with_listings(PAGE.read_text()))
    runpy.run_path(str(Path(__file__).with_name("compile_rules.py")))["write"]()
