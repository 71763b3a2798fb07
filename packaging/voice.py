"""Refuses words that mean something only in this project, where a user reads them: python packaging/voice.py.

Prints file:line, the words, and what to say. Patterns are narrow, so that ordinary English ("the lock is held", "leave it
alone", "deal with") passes. Text wraps, so a pattern may match across the end of a line.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES = (
    "*.md",
    "docs/**/*.md",
    "docs/alerts.yml",
    "docs/grafana-dashboard.json",
    ".github/**/*.md",
    ".github/**/*.yml",
    "packaging/debian/control",
    "packaging/rpm.spec",
    "packaging/quickstart",
    "packaging/install",
    "packaging/kubernetes/install-node",
)
HISTORY = ("CHANGELOG.md",)  # what a past release said stays
# Packages whose docstrings and other strings are checked. Then pages are checked also where they quote what the program
# prints (fenced blocks) and what is generated from it (between `<!-- NAME: begin -->` and `<!-- NAME: end -->`).
CODE: tuple[str, ...] = ("cni_quantum_nat",)

_WORDS = {
    r"(?<!on the )(?<!on its )ways? out": "outbound NAT",
    r"(?:its|their|whose|'s|s') ways? in(?! (?:a|an|the|this|that|which)\b)": "published port",
    r"ways? in(?= (?:was|were|is|are|and|or|for|of)\b)": "published port",
    r"(?<!good )(?<!great )(?:deals?|dealt|dealing)(?! (?:with|in)\b)": "distribute",
    r"slots? of (?:a|the|each|its) (?:host |shared )?ports?": "bucket",
    r"(?:64|its|their|which|has the) slots?": "bucket",
    r"joint ?plans?": "full plan",
    r"forg(?:e|o)t(?:s|ten|ting)?\b[^.;:|]{0,40}\bflows?": "delete conntrack entries",
    r"flows?\b[^.;:|]{0,40}\bforgotten": "delete conntrack entries",
    r"(?:(?:make|makes|making|made) (?:the|their|a)|tests'|the tests) world": "test topology",
    r"whole networks?": "network CIDR",
    r"(?:ports?|address(?:es)?)\b[^.;:|]{0,30}\b(?:is|are|was|were) (?:already )?held": "in use by",
    r"held (?:already|by (?:an? |the )?(?:container|attachment|another|process|somebody))": "in use by",
    r"holds? (?:the|its|a|an|that|this|which|each) (?:host )?(?:ports?|address(?:es)?)": "use, or reserve",
    r"holders?": "owner",
    r"neighbou?rs?(?! (?:table|cache|entr\w+|discovery|solicitation|advertisement)\b)": "container on the same network",
    r"puts? (?:\w+ )?right": "repair",
    r"refus\w+ shadowing": "check host listeners",
    r"shadow(?:s|ed|ing)": "take over",
    r"becomes? of": "policy, or what happens to",
    r"(?:host settings?|settings? of (?:the|a) host|host's (?:own )?settings?)": "sysctls",
    r"heirs?": "successor",
    r"(?:join|leave)s? (?:a|the|its) shared ports?": "add to, or remove from",
    r"IPv[46] clothes": "IPv4-mapped",
    r"(?:say|says|said|saying) (?:ADD|DEL|CHECK|GC|STATUS)": "call",
    r"say more of": "give a longer prefix",
    r"under our feet": "between two calls",
    r"what is missed": "Known gaps",
}
PATTERNS = [(re.compile(rf"\b{pattern}\b", re.IGNORECASE), instead) for pattern, instead in _WORDS.items()]
_QUOTED = re.compile(r"^[ \t]*```.*?^[ \t]*```|<!-- (\w+): begin -->.*?<!-- \1: end -->", re.MULTILINE | re.DOTALL)


class Finding(NamedTuple):
    """Words, and where they stand: a line, from 1."""

    line: int
    words: str
    instead: str


def in_text(text: str) -> Iterator[Finding]:
    """Find the words in a text, also where they go on in the next line."""
    flat = re.sub(r"\s", " ", text)
    flat = re.sub(r" {2,}", lambda spaces: " " + "\0" * (len(spaces[0]) - 1), flat)  # as many characters as before
    kept = [at for at, character in enumerate(flat) if character != "\0"]
    joined = flat.replace("\0", "")
    for pattern, instead in PATTERNS:
        for match in pattern.finditer(joined):
            yield Finding(text.count("\n", 0, kept[match.start()]) + 1, match[0], instead)


def in_page(text: str, *, quotes: bool) -> Iterator[Finding]:
    """Find the words in a page; what it quotes of the program counts only with `quotes`."""
    if not quotes:
        text = _QUOTED.sub(lambda quoted: "\n" * quoted[0].count("\n"), text)
    return in_text(text)


def in_code(source: str) -> Iterator[Finding]:
    """Find the words in the strings of a module, docstrings included, but not in names: of `__slots__`, or in backquotes."""
    tree = ast.parse(source)
    slots = {id(part) for node in ast.walk(tree) if _is_slots(node) for part in ast.walk(node)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in slots:
            continue
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        else:
            continue
        for found in in_text(re.sub(r"`\w+`", "``", text)):
            yield found._replace(line=node.lineno + found.line - 1)


def _is_slots(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__slots__" for t in node.targets)


def findings() -> Iterator[tuple[Path, Finding]]:
    """Find the words in all that a user reads."""
    for page in sorted({page for pattern in PAGES for page in ROOT.glob(pattern)}):
        if page.name not in HISTORY:
            for found in in_page(page.read_text(), quotes=bool(CODE)):
                yield page, found
    for package in CODE:
        for module in sorted((ROOT / package).rglob("*.py")):
            for found in in_code(module.read_text()):
                yield module, found


def main() -> int:
    """Print what is found; return 1 when anything is."""
    status = 0
    for path, found in findings():
        print(f'{path.relative_to(ROOT)}:{found.line}: "{found.words}": say "{found.instead}"')  # noqa: T201
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
