"""Describe the allowed values of each configuration key, and explain validation errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError

_BOOLEAN = "true or false"
_SECONDS = "a number of seconds, 1 to 2147483"
_CONDITIONS = "a list of words that form match expressions of the backend"
ALLOWED = {
    "backend": '"nftables" or "iptables"',
    "ipForwarding": _BOOLEAN,
    "masquerade": 'true, false, "ipv4" or "ipv6"',
    "noMasqueradeTo": 'a list of network CIDRs, such as "10.244.0.0/16"',
    "externalInterface": 'an interface name, a list of names, or "default"',
    "snatAddress": "an IP address, or a list with at most one of each family",
    "portRange": 'a first and a last port, such as "32768-60999"',
    "hostPortConflict": '"refuse" or "allow"',
    "sharedPorts": "a list of ports, 1 to 65535",
    "sharedAffinity": '"none" or "client"',
    "conntrackTimeout": _SECONDS,
    "udpTimeout": _SECONDS,
    "udpStreamTimeout": _SECONDS,
    "ipv6Localhost": _BOOLEAN,
    "markMasqBit": "a bit of the packet mark, 0 to 31",
    "externalSetMarkChain": "the name of an iptables chain, at most 28 bytes",
    "allowFrom": 'a list of at least one network CIDR or address, such as "192.0.2.0/24"',
    "publishOn": 'a list of at least one interface name, such as "eth1"',
    "conditionsV4": _CONDITIONS,
    "conditionsV6": _CONDITIONS,
    "isolate": _BOOLEAN,
    "snat": _BOOLEAN,
    "masqAll": _BOOLEAN,
    "metrics": _BOOLEAN,
    "stateDir": "an absolute path",
    "capabilities": "an object of booleans",
}


class Problem(NamedTuple):
    """A problem in a configuration. path: the key, and the index of an item; empty if it concerns no single key."""

    path: tuple[str | int, ...]
    message: str


def explain(error: ValidationError, configuration: dict[str, Any]) -> list[Problem]:
    """Return one problem for each key, with its value and the allowed ones; pydantic reports each branch of a union."""
    reasons: dict[str, list[str]] = {}
    paths: dict[str, tuple[str | int, ...]] = {}
    for problem in error.errors(include_url=False):
        key = str(problem["loc"][0]) if problem["loc"] else ""
        of_key = reasons.setdefault(key, [])
        paths.setdefault(key, (key, *(part for part in problem["loc"][1:] if isinstance(part, int))))
        if problem["type"] == "value_error":  # our own; the others only repeat ALLOWED
            of_key.append(problem["msg"].removeprefix("Value error, "))
    return [_explain_key(key, why, paths[key], configuration) for key, why in reasons.items()]


def _explain_key(key: str, reasons: list[str], path: tuple[str | int, ...], configuration: dict[str, Any]) -> Problem:
    why = "; ".join(dict.fromkeys(reasons))
    if not key:  # a conflict between keys: the message begins with the key to change
        first_word = why.partition(" ")[0]
        return Problem((first_word,) if first_word in configuration else (), why)
    value = repr(configuration[key])
    return Problem(path, f"{key} is {value}: it must be {ALLOWED[key]}" + (f" ({why})" if why else ""))
