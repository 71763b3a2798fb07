"""Check conditionsV4 and conditionsV6: further conditions for connections, in the backend's own syntax.

The words become part of a rule, so only match expressions are allowed: no verdicts, no statements, and nothing that ends the
rule and starts another.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from itertools import pairwise
from typing import TYPE_CHECKING

from .errors import InvalidConfiguration

if TYPE_CHECKING:
    from collections.abc import Iterable

_NFT_WORD = re.compile(r"[A-Za-z0-9_.:/!=<>&|^,{}()*\- ]+")
# nft(8), STATEMENTS and VERDICT STATEMENT. Versions of nft differ, so the compiled conditions are checked again before use, in
# backends/nftables/programs.py.
_NFT_STATEMENTS = frozenset(
    [
        "accept",
        "drop",
        "continue",
        "return",
        "jump",
        "goto",
        "queue",
        "counter",
        "quota",
        "limit",
        "log",
        "last",
        "reject",
        "snat",
        "dnat",
        "masquerade",
        "redirect",
        "tproxy",
        "notrack",
        "set",
        "map",
        "vmap",
        "add",
        "update",
        "delete",
        "reset",
        "meter",
        "dup",
        "fwd",
        "synproxy",
        "flow",
        "xt",
        "comment",
        "count",
        "secmark",
        "nat",
    ]
)

# Interface indexes, and what else is looked up by a name when a rule is read: the values of these.
_NFT_INDEXES = ("iif", "oif", "sdif")
_NFT_VALUES = re.compile(
    r"\b(?:saddr|daddr|nexthop|gateway|skuid|skgid)\b(?:\s*\.\s*[a-z0-9 ]+?(?=\s*[{=!<>]))?\s*(?P<values>(?:[=!<>&|^]+\s*)*"
    r"(?:\{[^{}]*\}|\([^()]*\)|[A-Za-z0-9_.:/\-]+)(?:\s*(?:[=!<>&|^]+)\s*[A-Za-z0-9_.:/\-]+)*)"
)
_NFT_FIB = re.compile(r"\bfib\s+[a-z .]+?\s(?:type|oifname)\b")  # asks the routing table: the fields have no values
_PROTOCOLS = ("tcp", "udp", "sctp", "icmp", "icmpv6")

_IPTABLES_WORD = re.compile(r"[A-Za-z0-9_.:/,!+\-]+")
_IPTABLES_ADDRESSES = ("-s", "-d", "--src", "--dst", "--source", "--destination")
_IPTABLES_SHORT = frozenset(("-s", "-d", "-i", "-o", "-m", "-f"))
# Options that are not matches: commands and targets, iptables(8). Long options may be abbreviated.
_IPTABLES_COMMANDS = [
    "--append",
    "--check",
    "--delete",
    "--insert",
    "--replace",
    "--list",
    "--list-rules",
    "--flush",
    "--zero",
    "--new-chain",
    "--delete-chain",
    "--policy",
    "--rename-chain",
    "--help",
    "--jump",
    "--goto",
    "--table",
    "--verbose",
    "--wait",
    "--wait-interval",
    "--numeric",
    "--exact",
    "--line-numbers",
    "--modprobe",
    "--set-counters",
    "--proto",
    "--protocol",
    "--ipv4",
    "--ipv6",
    "--version",
    "--noflush",
    "--counters",
]


def backend_of(words: list[str]) -> str:
    """Return the backend with this syntax, by the same rule as portmap."""
    return "iptables" if words[0].startswith(("-", "!")) else "nftables"


def check_conditions(words: list[str]) -> list[str]:
    """Return the words; raise ValueError if one is not part of a match expression."""
    if not words:
        return words
    return _check_iptables(words) if backend_of(words) == "iptables" else _check_nft(words)


def require_conditions(family: int, words: Iterable[str]) -> None:
    """Raise InvalidConfiguration if the words are not part of a match expression: older versions recorded host names too."""
    try:
        check_conditions(list(words))
    except ValueError as error:
        raise InvalidConfiguration(
            f"conditionsV{family}: {error}", "Change the network's conditions, and start the container again."
        ) from error


def _check_nft(words: list[str]) -> list[str]:
    text = " ".join(words)
    if not _NFT_WORD.fullmatch(text):
        raise ValueError(f"{text!r} has characters that are not allowed in a match expression")
    for word in re.findall(r"[A-Za-z0-9_]+", text):
        if word in _NFT_STATEMENTS:
            raise ValueError(f"{word!r} is not part of a match expression")
        if word in _NFT_INDEXES:
            raise ValueError(
                f"{word!r} is the index of an interface that must exist whenever the rules are made: use {word}name, which matches by name"
            )
    if not _is_balanced(text):
        raise ValueError(f"{text!r} has unbalanced braces or parentheses")
    _refuse_names(text)
    return words


def _refuse_names(text: str) -> None:
    """Refuse names that nft looks up when it reads a rule: what they stand for changes, and DNS takes its time."""
    for values in _NFT_VALUES.finditer(_NFT_FIB.sub(" ", text)):
        for value in re.findall(r"[A-Za-z0-9_.:/\-]+", values["values"]):
            if value not in (".", "-") and not _is_literal(value):
                raise ValueError(f"{value!r} is not an address or a number: names are not looked up")


def _is_literal(value: str) -> bool:
    """Return whether it is an address, a network, a range of either, a MAC address or a number."""
    if re.fullmatch(r"[0-9]+(-[0-9]+)?|0x[0-9a-fA-F]+|([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}", value):
        return True
    try:
        for part in value.split("-"):
            ip_network(part, strict=False)
    except ValueError:
        return value in _PROTOCOLS
    return True


def _is_balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in "{(") - (character in "})")
        if depth < 0:
            return False
    return depth == 0


def _check_iptables(words: list[str]) -> list[str]:
    for word in words:
        if not _IPTABLES_WORD.fullmatch(word):
            raise ValueError(f"{word!r} has characters that are not allowed in a match")
        name = word.partition("=")[0]
        if word.startswith("--") and (word == "--" or any(known.startswith(name) for known in _IPTABLES_COMMANDS)):
            raise ValueError(f"{word!r} is not a match of iptables, or is added by quantum-nat itself")
        if word.startswith("-") and not word.startswith("--") and word not in _IPTABLES_SHORT:
            raise ValueError(f"{word!r} is not a match of iptables, or is added by quantum-nat itself")
    for option, value in pairwise(words):
        if option in _IPTABLES_ADDRESSES and not all(map(_is_literal, value.split(","))):
            raise ValueError(f"{value!r} is not an address: names are not looked up")
    return words
