"""Writes backends/nftables/compiled.py: the rules, chains and sets of text.py as the netlink attributes that libnftables makes of them.

`nft --check --debug=mnl` prints them, in a network namespace of its own; nothing is changed. packaging/ruleset.py calls this.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cni_quantum_nat.backends.nftables import batch, layout, text
from cni_quantum_nat.kernel.netlink import attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MODULE = Path(__file__).parents[1] / "cni_quantum_nat" / "backends" / "nftables" / "compiled.py"
_TABLE = layout.TABLE
_KIND = re.compile(r"\| (\d{5}) \| [RMAE-]{4} \|")
_ATTRIBUTE = re.compile(r"\|(\d{5})\|([N-])[B-]\|(\d{5})\|")
_DATA = re.compile(r"\| ((?:[0-9a-f]{2} ){4}) \|\t\|      data")
_NESTED = 0x8000
# Together and each alone; for shared ports, and with conditions, libnftables makes them.
_FILTERS = (tuple(layout.FILTERS), *((name,) for name in layout.FILTERS))
_NUMBERED = (
    "prefix",
    "timeout",
    "network_timeout",
    "udp_timeout",
    "network_udp_timeout",
)  # parts that have a number, as many as there are numbers
_SET_ID_OF_SET, _SET_ID_OF_ELEMENTS = 10, 4
# What stands before the number of a set without a name, whose name is a pattern: in a rule, in its declaration, with its elements.
_LOOKUP = attribute(1, b"__set%d\0") + bytes.fromhex("08000400")
_DECLARED = bytes.fromhex("08000a00")
_NAMED = attribute(2, b"__set%d\0") + bytes.fromhex("08000400")


class Message(NamedTuple):
    """A message of a batch. content: its attributes after the one that names the table."""

    kind: int
    content: bytes

    @property
    def parts(self) -> dict[int, bytes]:
        return dict(attributes(self.content))


def every_part() -> set[str]:
    """Return all parts. One prefix length of each family stands for all; of time-outs, only the default is compiled."""
    named = {layout_.part for layout_ in layout.SETS.values() if not layout_.part.startswith(_NUMBERED)}
    return named | text.default_parts() | {layout.prefix_part(f, n) for f, n in batch.PATTERN.items()}


def every_chain() -> dict[str, text.Chain]:
    """Return each chain with every rule that it has in one table or another."""
    parts = every_part()
    found: dict[str, text.Chain] = {}
    for some in ({layout.CORE}, text.default_parts(), parts, *({layout.CORE, part} for part in sorted(parts))):
        for chosen in (some, some | text.default_parts()):
            for name, chain in text.chains(chosen).items():
                known = found.setdefault(name, text.Chain(chain.comment, [], chain.hook))
                known.rules += text.without(chain.rules, known.rules)
    return found


def compiled() -> str:
    """Return the module."""
    parts, chains = every_part(), every_chain()
    kinds = [layout.SPREAD_EVENLY, layout.SPREAD_BY_CLIENT]
    places = ("", layout.ON_ONE_ADDRESS)
    policies = text.policy_chains(
        [layout.Policy(kind + where) for kind in kinds for where in places]
        + [layout.Policy(layout.PUBLISH + where, None, filters) for filters in _FILTERS for where in places]
    )
    sets = [text.layout_declaration(), *text.declarations_of(parts)]
    blocks = {name: chain.declaration for name, chain in chains.items()} | dict.fromkeys(policies, "")
    rules = {name: chain.rules for name, chain in chains.items()} | policies
    written = "".join("\n".join([f"chain {name} {{", head, *rules[name], "}\n"]) for name, head in blocks.items())
    timeouts = text.timeouts_of(parts)
    found = list(_messages(f"table inet {_TABLE} {{\n{''.join((*timeouts, *sets))}{written}}}\n"))
    of_kind = {kind: [message for message in found if message.kind == kind] for kind in {m.kind for m in found}}
    named = [message for message in of_kind[batch.NEWSET] if not _is_anonymous(message)]
    return _module(
        TIMEOUTS=zip(timeouts, (m.content.hex() for m in of_kind[batch.NEWOBJ]), strict=True),
        SETS=zip(sets, (message.content.hex() for message in named), strict=True),
        CHAINS=(
            (chains[name].declaration, _without_name(message).hex())
            for message in of_kind[batch.NEWCHAIN]
            if (name := _name(message.parts[batch.CHAIN_NAME])) in chains
        ),
        RULES=_rules(rules, of_kind),
    )


def _rules(rules: dict[str, list[str]], of_kind: dict[int, list[Message]]) -> Iterator[tuple[str, str]]:
    anonymous = {m.parts[_SET_ID_OF_SET]: m for m in of_kind[batch.NEWSET] if _is_anonymous(m)}
    contents = {m.parts[_SET_ID_OF_ELEMENTS]: m for m in of_kind[batch.NEWSETELEM]}
    for name, texts in rules.items():
        messages = [m for m in of_kind[batch.NEWRULE] if _name(m.parts[batch.RULE_CHAIN]) == name]
        for rule, message in zip(texts, messages, strict=True):
            expressions = message.content.partition(_framed(message, batch.RULE_CHAIN))[2]
            pieces = [expressions]
            for number, declared in anonymous.items():
                if _LOOKUP + number in expressions:
                    pieces += [declared.content, contents[number].content]
                    pieces = [_with_number(piece, number) for piece in pieces]
                    break
            yield rule, " ".join(piece.hex() for piece in pieces)


def _with_number(piece: bytes, number: bytes) -> bytes:
    """Return what refers to a set without a name with the number that batch.py replaces."""
    for before in (_LOOKUP, _DECLARED, _NAMED):
        piece = piece.replace(before + number, before + batch.SET_NUMBER)
    return piece


def _framed(message: Message, kind: int) -> bytes:
    """Return an attribute of a message as it is there."""
    value = message.parts[kind]
    return (4 + len(value)).to_bytes(2, "little") + kind.to_bytes(2, "little") + value + b"\0" * (-len(value) % 4)


def _without_name(message: Message) -> bytes:
    return message.content.replace(_framed(message, batch.CHAIN_NAME), b"", 1)


def _name(value: bytes) -> str:
    return value.rstrip(b"\0").decode()


def _is_anonymous(message: Message) -> bool:
    return message.parts[batch.SET_NAME].startswith(b"__")


def _messages(ruleset: str) -> Iterator[Message]:
    """Yield the messages by which nft would make a ruleset."""
    command = ["unshare", "--user", "--map-root-user", "--net", "nft", "--check", "--debug=mnl", "--file", "-"]
    done = subprocess.run(command, input=ruleset, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr}")
    kind, content = 0, b""
    for line in re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines():
        if found := _KIND.match(line):
            kind, content = int(found[1]) & 0xFF, b""
        elif found := _ATTRIBUTE.match(line):
            of_kind = int(found[3]) | (_NESTED if found[2] == "N" else 0)
            content += int(found[1]).to_bytes(2, "little") + of_kind.to_bytes(2, "little")
        elif found := _DATA.match(line):
            content += bytes.fromhex(found[1])
        elif line.startswith("-") and content:
            of_table = 4 + len(_TABLE) + 1
            yield Message(kind, content[of_table + -of_table % 4 :])
            content = b""


def _module(**tables: Iterable[tuple[str, str]]) -> str:
    lines = [
        '"""text.py as netlink attributes, without the table\'s name: written by packaging/compile_rules.py.',
        "",
        "By the text that they are made of, so what has changed since then is not found here. Of a rule: its expressions, and where it has a set",
        "without a name, that set and its elements.",
        '"""',
        "",
        "from __future__ import annotations",
    ]
    for name, entries in tables.items():
        lines += ["", f"{name} = {{", *(f"    {key!r}: {value!r}," for key, value in dict(entries).items()), "}"]
    return "\n".join(lines) + "\n"


def write() -> None:
    """Write the module, unless it is so already."""
    content = compiled()
    if not MODULE.exists() or MODULE.read_text() != content:
        MODULE.write_text(content)


if __name__ == "__main__":
    write()
