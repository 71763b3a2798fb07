"""Check conditionsV4 and conditionsV6: further conditions for connections, in the backend's own syntax.

The words become part of a rule, so only match expressions are allowed: no verdicts, no statements, and nothing that ends the
rule and starts another.
"""

from __future__ import annotations

import re

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

_IPTABLES_WORD = re.compile(r"[A-Za-z0-9_.:/,!+\-]+")
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


def _check_nft(words: list[str]) -> list[str]:
    text = " ".join(words)
    if not _NFT_WORD.fullmatch(text):
        raise ValueError(f"{text!r} has characters that are not allowed in a match expression")
    for word in re.findall(r"[A-Za-z0-9_]+", text):
        if word in _NFT_STATEMENTS:
            raise ValueError(f"{word!r} is not part of a match expression")
    if not _is_balanced(text):
        raise ValueError(f"{text!r} has unbalanced braces or parentheses")
    return words


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
    return words
