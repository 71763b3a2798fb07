"""What a key of the configuration may be, and what is wrong with one, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError

_BOOLEAN = "true or false"
_CONDITIONS = "a list of words that make match expressions of the backend"
ALLOWED = {
    "backend": '"nftables" or "iptables"',
    "ipForwarding": _BOOLEAN,
    "masquerade": 'true, false, "ipv4" or "ipv6"',
    "externalInterface": 'the name of an interface, a list of names, or "default"',
    "snatAddress": "an IP address, or a list of at most one of each family",
    "portRange": 'a first and a last port, "32768-60999"',
    "hostPortConflict": '"refuse" or "allow"',
    "sharedPorts": "a list of ports, 1 to 65535",
    "sharedAffinity": '"none" or "client"',
    "conntrackTimeout": "a number of seconds, 1 to 2147483",
    "ipv6Localhost": _BOOLEAN,
    "markMasqBit": "a bit of the packet mark, 0 to 31",
    "externalSetMarkChain": "the name of an iptables chain, at most 28 bytes",
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
    """What is wrong with a configuration. path: the key, and the index of an item; empty where no key is to blame."""

    path: tuple[str | int, ...]
    message: str


def explain(error: ValidationError, configuration: dict[str, Any]) -> list[Problem]:
    """Say for each key what it is and what it may be; pydantic says it for each branch of a union."""
    reasons: dict[str, list[str]] = {}
    paths: dict[str, tuple[str | int, ...]] = {}
    for problem in error.errors(include_url=False):
        key = str(problem["loc"][0]) if problem["loc"] else ""
        of_key = reasons.setdefault(key, [])
        paths.setdefault(key, (key, *(part for part in problem["loc"][1:] if isinstance(part, int))))
        if problem["type"] == "value_error":  # ours; the others repeat what ALLOWED says
            of_key.append(problem["msg"].removeprefix("Value error, "))
    return [_explain_key(key, why, paths[key], configuration) for key, why in reasons.items()]


def _explain_key(key: str, reasons: list[str], path: tuple[str | int, ...], configuration: dict[str, Any]) -> Problem:
    why = "; ".join(dict.fromkeys(reasons))
    if not key:  # what does not go together: such a message begins with the key that has to go
        first_word = why.partition(" ")[0]
        return Problem((first_word,) if first_word in configuration else (), why)
    value = repr(configuration[key])
    return Problem(path, f"{key} is {value}: it must be {ALLOWED[key]}" + (f" ({why})" if why else ""))
