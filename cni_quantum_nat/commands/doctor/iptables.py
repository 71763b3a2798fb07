"""Convert what iptables-save prints to chains whose rules are expressions in libnftables' JSON."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from .chain import Chain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .chain import Expression

_HOOKS = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_OPAQUE: Expression = {"xt": {"type": "match", "name": "unknown"}}
_VERDICTS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return"}
_TARGETS_THAT_GO_ON = {"LOG", "NFLOG", "CONNMARK", "TCPMSS", "CHECKSUM", "TRACE", "DSCP", "CLASSIFY", "TOS", "TTL"}
_PORTS = {"--dport": "dport", "--dports": "dport", "--sport": "sport", "--sports": "sport"}
_ORIGINAL = {
    "--ctorigsrc": "{} saddr",
    "--ctorigdst": "{} daddr",
    "--ctorigsrcport": "proto-src",
    "--ctorigdstport": "proto-dst",
}
_WITHOUT_MEANING = [
    "-m",
    "--comment",
    "--reject-with",
    "--random",
    "--random-fully",
    "--persistent",
    "--log-prefix",
    "--log-level",
    "--nflog-group",
    "--nflog-prefix",
    "--to-source",
    "--to-ports",
    "--clamp-mss-to-pmtu",
    "--set-mss",
    "--set-dscp",
    "--zone",
    "--nfacct-name",
]


def chains_of_iptables(text: str, family: int, variant: str) -> Iterator[Chain]:
    """Yield the chains in the output of iptables-save."""
    chains: dict[str, Chain] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table, chains = line[1:], {}
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chains[name] = _chain(table, name, policy, family, variant)
        elif line.startswith("-A "):
            words = shlex.split(line)
            chains[words[1]].rules.append(list(_expressions(words[2:], family)))
        elif line == "COMMIT":
            yield from chains.values()


def _chain(table: str, name: str, policy: str, family: int, variant: str) -> Chain:
    hook = _HOOKS.get(name, "") if policy != "-" else ""
    priority = _PRIORITIES.get(table, {"prerouting": -100, "output": -100}.get(hook, 100))
    label = f"{'ip' if family == 4 else 'ip6'} {table}" + (", legacy" if variant == "legacy" else "")
    verdict = "drop" if policy == "DROP" else "accept"
    kind = "nat" if table == "nat" else "filter"
    return Chain({family}, label, name, hook, priority, verdict, [], kind, variant=variant)


def _expressions(words: list[str], family: int) -> Iterator[Expression]:
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


def _one(word: str, values: list[str], protocol: str, *, negated: bool) -> Iterable[Expression]:  # noqa: C901, PLR0911, PLR0912 - one branch for each option
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
    if word in _ORIGINAL:
        left = {"ct": {"key": _ORIGINAL[word].format(protocol), "dir": "original"}}
        return [_match(left, _ports(value) if "port" in word else _address(value), negated=negated)]
    if word in ("--ctstate", "--state"):
        return [_match({"ct": {"key": "state or status"}}, value.lower().split(","), negated=negated, operator="in")]
    if word == "--ctdir":
        return [_match({"ct": {"key": "direction"}}, value.lower(), negated=negated)]
    if word in ("--dst-type", "--src-type"):
        flags = ["daddr" if word == "--dst-type" else "saddr"]
        return [_match({"fib": {"result": "type", "flags": flags}}, {"set": value.lower().split(",")}, negated=negated)]
    if word == "--tcp-flags":
        return [_tcp_flags(*(part.lower().split(",") for part in values), negated=negated)]
    if word == "--mark":
        return [_mark(value, negated=negated)]
    if word == "--set-xmark":
        return [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": int(value.partition("/")[0], 0)}}]
    if word in ("-j", "-g"):
        return _target(word, value)
    if word == "--notrack":
        return [{"notrack": None}]
    if word == "--to-destination":
        return [{"dnat": {"to": value}}]
    return [] if word in _WITHOUT_MEANING else [_OPAQUE]


def _match(left: Expression, right: object, *, negated: bool, operator: str = "==") -> Expression:
    return {"match": {"op": "!=" if negated else operator, "left": left, "right": right}}


def _address(text: str) -> object:
    address, slash, length = text.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}} if slash and length.isdigit() else address


def _ports(text: str) -> object:
    parts = [part.partition(":") for part in text.split(",")]
    ports: list[object] = [{"range": [int(a), int(b)]} if colon else int(a) for a, colon, b in parts]
    return ports[0] if len(ports) == 1 else {"set": ports}


def _tcp_flags(mask: list[str], wanted: list[str], *, negated: bool) -> Expression:
    flags = {"payload": {"protocol": "tcp", "field": "flags"}}
    return _match({"&": [flags, mask]}, [flag for flag in wanted if flag != "none"], negated=negated)


def _mark(text: str, *, negated: bool) -> Expression:
    bits, _, mask = text.partition("/")
    mark: Expression = {"meta": {"key": "mark"}}
    return _match({"&": [mark, int(mask, 0)]} if mask else mark, int(bits, 0), negated=negated)


def _target(word: str, name: str) -> Iterable[Expression]:
    if name in _VERDICTS:
        return [{_VERDICTS[name]: None}]
    if name in _TARGETS_THAT_GO_ON or name in ("MARK", "CT"):  # what these do, an option says
        return []
    if name == "NOTRACK":
        return [{"notrack": None}]
    if name in ("NFQUEUE", "QUEUE"):
        return [{"queue": None}]
    if name in ("DNAT", "REDIRECT", "SNAT", "MASQUERADE"):
        return [{"redirect": None}] if name == "REDIRECT" else []
    return [{"jump" if word == "-j" else "goto": {"target": name}}]
