"""All chains on the host: of nf_tables, iptables-nft and iptables-legacy.

A rule is a list of expressions in libnftables' JSON. libnftables shows iptables' own expressions only as "xt", so such tables
are read with iptables-save, and converted to the same expressions.
"""

from __future__ import annotations

import shlex
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...backends.iptables.programs import save
from ...model.errors import CniError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Expression = dict[str, Any]
    Rule = list[Expression]

_HOOKS = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_LEGACY_TABLES = {4: Path("/proc/net/ip_tables_names"), 6: Path("/proc/net/ip6_tables_names")}
_FAMILIES = {"ip": {4}, "ip6": {6}, "inet": {4, 6}}
_OPAQUE: Expression = {"xt": {"type": "match", "name": "unknown"}}


class Chain(NamedTuple):
    """A chain. hook: empty if it is only reached by jumps. table: family and name."""

    families: set[int]
    table: str
    name: str
    hook: str
    priority: int
    policy: str
    rules: list[Rule]

    def __str__(self) -> str:
        return f"chain {self.name} in table {self.table}"


class Ruleset:
    """All chains. sets: the elements of named sets and maps, by (table, name). unread: errors for what could not be read."""

    def __init__(self, listed: list[dict[str, Any]]) -> None:
        self.chains: dict[tuple[str, str], Chain] = {}
        self.sets: dict[tuple[str, str], list[Any]] = {}
        self.unread: list[str] = []
        for kind, item in ((kind, item) for entry in listed for kind, item in entry.items()):
            table = f"{item.get('family')} {item.get('table')}"
            if kind == "chain" and item["family"] in _FAMILIES:
                self.chains[table, item["name"]] = _chain_of_nft(table, item)
            elif kind in ("set", "map"):
                self.sets[table, item["name"]] = item.get("elem", [])
            elif kind == "rule" and (table, item["chain"]) in self.chains:
                self.chains[table, item["chain"]].rules.append(item["expr"])
        self._read_iptables()

    @cached_property
    def port_boundaries(self) -> set[int]:
        """The ports at which any rule may begin or cease to match: numbers and ranges that rules and sets name, and what follows them."""
        rules = {port for chain in self.chains.values() for port in _boundaries_in(chain.rules)}
        return rules.union(*map(_boundaries_in, self.sets.values()))

    def hooked(self, hook: str, family: int) -> list[Chain]:
        """Return the chains at a hook for this family, in order of priority."""
        found = [chain for chain in self.chains.values() if chain.hook == hook and family in chain.families]
        return sorted(found, key=lambda chain: chain.priority)

    def _read_iptables(self) -> None:
        """Read the tables with "xt" expressions, and those of iptables-legacy, with iptables-save."""
        opaque = {table for (table, _), chain in self.chains.items() if any("xt" in e for r in chain.rules for e in r)}
        for family, prefix in ((4, "ip"), (6, "ip6")):
            if any(table.startswith(f"{prefix} ") for table in opaque):
                self._replace(family, "nft", {table for table in opaque if table.startswith(f"{prefix} ")})
            if self._has_legacy(family):
                self._replace(family, "legacy", set())

    def _has_legacy(self, family: int) -> bool:
        try:
            return bool(_LEGACY_TABLES[family].read_text().strip())
        except FileNotFoundError:
            return False
        except PermissionError:
            self.unread.append(f"only root can read {_LEGACY_TABLES[family]}: run doctor as root")
            return False

    def _replace(self, family: int, variant: str, only: set[str]) -> None:
        try:
            text = save(family, variant)
        except CniError as error:
            self.unread.append(error.message)
            return
        for chain in _chains_of_iptables(text, family, variant):
            if not only or chain.table in only:
                self.chains[chain.table, chain.name] = chain


def _chain_of_nft(table: str, item: dict[str, Any]) -> Chain:
    hook, priority, policy = item.get("hook", ""), item.get("prio", 0), item.get("policy", "accept")
    return Chain(_FAMILIES[item["family"]], table, item["name"], hook, priority, policy, [])


def _chains_of_iptables(text: str, family: int, variant: str) -> Iterator[Chain]:
    chains: dict[str, Chain] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table, chains = line[1:], {}
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chains[name] = _chain_of_iptables(table, name, policy, family, variant)
        elif line.startswith("-A "):
            words = shlex.split(line)
            chains[words[1]].rules.append(list(_translated(words[2:], family)))
        elif line == "COMMIT":
            yield from chains.values()


def _chain_of_iptables(table: str, name: str, policy: str, family: int, variant: str) -> Chain:
    hook = _HOOKS.get(name, "") if policy != "-" else ""
    priority = _PRIORITIES.get(table, {"prerouting": -100, "output": -100}.get(hook, 100))
    label = f"{'ip' if family == 4 else 'ip6'} {table}" + (", legacy" if variant == "legacy" else "")
    return Chain({family}, label, name, hook, priority, "drop" if policy == "DROP" else "accept", [])


def _match(left: Expression, right: object, *, negated: bool, operator: str = "==") -> Expression:
    return {"match": {"op": "!=" if negated else operator, "left": left, "right": right}}


def _address(text: str) -> object:
    address, slash, length = text.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}} if slash and length.isdigit() else address


def _ports(text: str) -> object:
    parts = [part.partition(":") for part in text.split(",")]
    ports: list[object] = [{"range": [int(a), int(b)]} if colon else int(a) for a, colon, b in parts]
    return ports[0] if len(ports) == 1 else {"set": ports}


_VERDICTS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return"}
_TARGETS_THAT_GO_ON = {"MARK", "LOG", "NFLOG", "CONNMARK", "TCPMSS", "CT", "NOTRACK", "CHECKSUM", "TRACE", "DSCP"}
_PORTS = {"--dport": "dport", "--dports": "dport", "--sport": "sport", "--sports": "sport"}


def _translated(words: list[str], family: int) -> Iterator[Expression]:
    """Yield the expressions of an iptables rule; an unknown option may or may not match."""
    protocol = "ip" if family == 4 else "ip6"
    rest, negated = list(words), False
    while rest:
        word = rest.pop(0)
        if word == "!":
            negated = True
            continue
        values = _values(rest)
        yield from _one(word, values, protocol, negated=negated)
        negated = False


def _values(rest: list[str]) -> list[str]:
    """Remove and return the words up to the next option."""
    values = []
    while rest and not rest[0].startswith("-") and rest[0] != "!":
        values.append(rest.pop(0))
    return values


def _one(word: str, values: list[str], protocol: str, *, negated: bool) -> Iterable[Expression]:  # noqa: PLR0911 - one line for each option
    value = values[0] if values else ""
    if word in ("-i", "-o"):
        name = value[:-1] + "*" if value.endswith("+") else value
        return [_match({"meta": {"key": {"-i": "iifname", "-o": "oifname"}[word]}}, name, negated=negated)]
    if word in ("-s", "-d"):
        field = {"-s": "saddr", "-d": "daddr"}[word]
        return [_match({"payload": {"protocol": protocol, "field": field}}, _address(value), negated=negated)]
    if word == "-p":
        return [_match({"meta": {"key": "l4proto"}}, value, negated=negated)]
    if word in _PORTS:
        return [_match({"payload": {"protocol": "th", "field": _PORTS[word]}}, _ports(value), negated=negated)]
    if word == "--ctstate":
        return [_states(value.lower().split(","), negated=negated)]
    if word in ("-j", "-g"):
        return _target(word, value)
    if word in ("-m", "--comment", "--to-destination", "--reject-with", "--random", "--set-xmark", "--log-prefix"):
        return [{"dnat": {"to": value}}] if word == "--to-destination" else []
    return [_OPAQUE]


def _states(names: list[str], *, negated: bool) -> Expression:
    translations = [name for name in names if name in ("dnat", "snat")]
    if translations:
        return _match({"ct": {"key": "status"}}, translations, negated=negated, operator="in")
    return _match({"ct": {"key": "state"}}, names, negated=negated, operator="in")


def _target(word: str, name: str) -> Iterable[Expression]:
    if name in _VERDICTS:
        return [{_VERDICTS[name]: None}]
    if name in _TARGETS_THAT_GO_ON:
        return []
    if name in ("DNAT", "REDIRECT", "SNAT", "MASQUERADE"):
        return [{"redirect": None}] if name == "REDIRECT" else []
    return [{"jump" if word == "-j" else "goto": {"target": name}}]


def _boundaries_in(value: Any) -> Iterator[int]:
    """Yield the first number, and the one after the last, of each number or range in libnftables' JSON, whether ports or not."""
    if isinstance(value, dict):
        for key, content in value.items():
            if key == "range" and len(numbers := [*_numbers_of(content[0]), *_numbers_of(content[1])]) == 2:
                yield from (numbers[0], numbers[1] + 1)
            elif key != "counter":
                yield from _boundaries_in(content)
    elif isinstance(value, list):
        for content in value:
            yield from _boundaries_in(content)
    else:
        for number in _numbers_of(value):
            yield from (number, number + 1)


def _numbers_of(value: Any) -> list[int]:
    """Return the number that a value is, as iptables-save's are text; nothing for other values."""
    if isinstance(value, int) or (isinstance(value, str) and value.isascii() and value.isdecimal()):
        return [int(value)]
    return []
