"""Make and extend table `inet quantum` without libnftables, from what packaging/compile_rules.py made of text.py. No I/O.

The first call after a boot makes the table, and a pod waits for it: to start the program that has libnftables takes forty times as
long. Where something is not compiled, such as a network's conditions, libnftables makes it: see programs.py.
"""

from __future__ import annotations

from ...kernel.netlink import attribute, attributes, nested
from .compiled import CHAINS, RULES, SETS, TIMEOUTS
from .encoding import addition, layout_change, text
from .layout import LAYOUT, TABLE, subnets_set
from .text import (
    chains,
    changed_chains,
    declarations_of,
    layout_declaration,
    mask,
    policy_chains,
    prefixes_of,
    timeouts_of,
    without,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .layout import Policy
    from .rules import Element

    Messages = list[tuple[int, int, bytes]]  # operation, flags, attributes

NEWTABLE, DELTABLE, NEWCHAIN, NEWRULE, DELRULE, NEWSET, NEWSETELEM, NEWOBJ = 0, 2, 3, 6, 8, 9, 12, 18
_TABLE_NAME, CHAIN_NAME, RULE_CHAIN, SET_NAME = 1, 3, 2, 2
_CREATE, _APPEND = 0x400, 0x800
_NESTED = 0x8000
_OF_TABLE = attribute(_TABLE_NAME, text(TABLE))
# In a compiled rule with a set of its own, the number by which they know each other. It is another one for each rule of a batch.
SET_NUMBER = b"\xffSET"
_FIRST_NUMBER = 1 << 16
PATTERN = {4: 31, 6: 127}  # the prefix length that is compiled; others differ from it in mask and name


class NotCompiled(Exception):
    """A rule, chain or set is not among what was compiled."""


def table(parts: Collection[str], policies: list[Policy], elements: Iterable[Element], boot_id: str) -> Messages:
    """Return the messages that make the table in place of any present one. elements: their owners are as comments name them."""
    messages: Messages = [(NEWTABLE, _CREATE, _OF_TABLE), (DELTABLE, 0, _OF_TABLE), (NEWTABLE, _CREATE, _OF_TABLE)]
    messages += _declared(parts, timeouts_of(parts), [layout_declaration(), *declarations_of(parts)])
    messages.append((NEWSETELEM, _CREATE, layout_change(LAYOUT, f"boot {boot_id}")))
    whole = chains(parts)
    messages += [(NEWCHAIN, _CREATE, _chain(name, chain.declaration)) for name, chain in whole.items()]
    messages += _rules({name: chain.rules for name, chain in whole.items()}, parts, len(messages))
    messages += _policies(policies, parts, len(messages))
    return messages + [(NEWSETELEM, _CREATE, addition(element, element.owner)) for element in elements]


def extension(
    present: Collection[str], wanted: Collection[str], policies: list[Policy], kept: Collection[str] = ()
) -> Messages:
    """Return the messages that add parts to the table, and the chains of policies. kept: as in extension_text()."""
    before, changed = chains(present), changed_chains(present, wanted)
    messages: Messages = [(DELRULE, 0, _of_chain(name)) for name in changed if name in before]
    messages += _declared(
        wanted,
        without(timeouts_of(wanted, kept), timeouts_of(present)),
        without(declarations_of(wanted), declarations_of(present)),
    )
    messages += [(NEWCHAIN, _CREATE, _chain(name, chain.declaration)) for name, chain in changed.items()]
    messages += _rules({name: chain.rules for name, chain in changed.items()}, wanted, len(messages))
    return messages + _policies(policies, wanted, len(messages))


def _declared(parts: Collection[str], timeouts: list[str], sets: list[str]) -> Messages:
    messages: Messages = [(NEWOBJ, _CREATE, _OF_TABLE + _compiled(TIMEOUTS, timeout, parts)[0]) for timeout in timeouts]
    return messages + [(NEWSET, _CREATE, _OF_TABLE + _compiled(SETS, declared, parts)[0]) for declared in sets]


def _policies(policies: list[Policy], parts: Collection[str], number: int) -> Messages:
    written = policy_chains(policies)
    messages: Messages = [(NEWCHAIN, _CREATE, _chain(name, "")) for name in written if name not in chains(parts)]
    messages += [(DELRULE, 0, _of_chain(name)) for name in written]
    return messages + _rules(written, parts, number + len(messages))


def _rules(rules: dict[str, list[str]], parts: Collection[str], number: int) -> Messages:
    messages: Messages = []
    for name, texts in rules.items():
        for rule in texts:
            own = (_FIRST_NUMBER + number + len(messages)).to_bytes(4, "big")
            expressions, *own_set = [piece.replace(SET_NUMBER, own) for piece in _compiled(RULES, rule, parts)]
            for kind, piece in zip((NEWSET, NEWSETELEM), own_set):
                messages.append((kind, _CREATE, _OF_TABLE + piece))
            messages.append((NEWRULE, _CREATE | _APPEND, _of_chain(name) + expressions))
    return messages


def _of_chain(name: str) -> bytes:
    return _OF_TABLE + attribute(RULE_CHAIN, text(name))


def _chain(name: str, declaration: str) -> bytes:
    content = _compiled(CHAINS, declaration, ())[0] if declaration else b""
    return _OF_TABLE + attribute(CHAIN_NAME, text(name)) + content


def _compiled(known: dict[str, str], what: str, parts: Collection[str]) -> list[bytes]:
    """Return what was compiled of a text, or of the same one for another prefix length."""
    if what in known:
        return [bytes.fromhex(piece) for piece in known[what].split(" ")]
    for family, pattern in PATTERN.items():
        for length in prefixes_of(parts, family):
            changes = (
                (subnets_set(family, length), subnets_set(family, pattern)),
                (str(mask(family, length)), str(mask(family, pattern))),
            )
            of_pattern = what
            for ours, compiled in changes:
                of_pattern = of_pattern.replace(f" {ours} ", f" {compiled} ").replace(f"@{ours} ", f"@{compiled} ")
            if of_pattern != what and of_pattern in known:
                leaves = {
                    text(subnets_set(family, pattern)): text(subnets_set(family, length)),
                    mask(family, pattern).packed: mask(family, length).packed,
                }
                return [_with_leaves(bytes.fromhex(piece), leaves) for piece in known[of_pattern].split(" ")]
    raise NotCompiled(what)


def _with_leaves(content: bytes, leaves: dict[bytes, bytes]) -> bytes:
    """Return attributes with other values in some of those that contain no attributes."""
    changed = b""
    offset = 0
    for kind, value in attributes(content):
        is_nested = content[offset + 3] & _NESTED >> 8
        changed += nested(kind, _with_leaves(value, leaves)) if is_nested else attribute(kind, leaves.get(value, value))
        offset += 4 + len(value) + -len(value) % 4
    return changed
