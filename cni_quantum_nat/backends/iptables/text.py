"""What the programs of iptables read and write: the script for iptables-restore, and what iptables-save lists. No I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .rules import FIXED_CHAINS, chains_of, fixed_rules

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .rules import Rule

TABLES = ("raw", "filter", "nat")  # what guards is there before what it guards against
_OURS = "-A QUANTUM-"
_COMMENT = re.compile(r'--comment (?:"((?:[^"\\]|\\.)*)"|(\S+))')
_JUMP_TO_OURS = re.compile(r" -[jg] (QUANTUM-\S+)")


class Script:
    """What iptables-restore is to do, by table; each table's part happens as a whole or not at all."""

    def __init__(self) -> None:
        self._made: dict[str, dict[str, None]] = {table: {} for table in TABLES}
        self._removed: dict[str, dict[str, None]] = {table: {} for table in TABLES}
        self._changes: dict[str, list[str]] = {table: [] for table in TABLES}

    def make_chains(self, table: str, names: Iterable[str]) -> None:
        """Make chains, empty: those that are there already are flushed before anything else happens."""
        self._made[table].update(dict.fromkeys(names))

    def remove_chains(self, table: str, names: Iterable[str]) -> None:
        """Remove chains, whether they are there or not, unless they are also made; after all else has happened."""
        self._removed[table].update(dict.fromkeys(names))

    def change(self, rules: Iterable[Rule], operation: str = "") -> None:
        """Add rules, or with -D or -C delete or look for them."""
        for rule in rules:
            self._changes[rule.table].append(rule.line(operation))

    def keep_lines(self, table: str, lines: Iterable[str]) -> None:
        """Add rules again that a flushed chain had, as iptables-save listed them."""
        self._changes[table] += lines

    def delete_line(self, table: str, line: str) -> None:
        """Delete a rule as iptables-save lists it."""
        self._changes[table].append(line.replace("-A", "-D", 1))

    @property
    def text(self) -> str:
        return "".join(map(self._part, TABLES))

    def _part(self, table: str) -> str:
        made, removed = self._made[table], self._removed[table]
        lines = [
            *(f":{name} - [0:0]" for name in {**made, **removed}),
            *self._changes[table],
            *(f"-X {name}" for name in removed if name not in made),
        ]
        return "\n".join([f"*{table}", *lines, "COMMIT\n"]) if lines else ""


class Listing:
    """What iptables-save said: by table the names of all chains, and of the rules those that are ours or lead to us.

    Whatever else is there is other programs' and not looked into: there may be tens of thousands of rules.
    """

    def __init__(self, text: str) -> None:
        self.chains: dict[str, set[str]] = {table: set() for table in TABLES}
        self.rules: list[tuple[str, str]] = []
        table = ""
        for line in text.split("\n"):
            if line.startswith("*"):
                table = line[1:]
            elif table not in self.chains:
                continue
            elif line.startswith(":"):
                self.chains[table].add(line[1:].partition(" ")[0])
            elif line.startswith(_OURS) or _leads_to_us(table, line):
                self.rules.append((table, line))

    def owners(self) -> set[str]:
        """Return whose rules there are."""
        return {owner for _, line in self.rules if (owner := owner_of(line))}

    def has_all_fixed(self, family: int) -> bool:
        """Whether our chains are there, and the rules that do not belong to a container."""
        rules = set(self.rules)
        return all((rule.table, rule.line("-A")) in rules for rule in fixed_rules(family)) and all(
            self.chains[table].issuperset(names) for table, names in FIXED_CHAINS.items()
        )

    def lines_of(self, table: str, chain: str) -> list[str]:
        """Return the rules of one of our chains, in their order."""
        return [line for of_table, line in self.rules if of_table == table and line.startswith(f"-A {chain} ")]

    def chains_in_name_of(self, owners: Iterable[str]) -> set[str]:
        """Return those chains of these owners that are there."""
        return {chain for owner in owners for chain in chains_of(owner)} & self.chains["nat"]


def _leads_to_us(table: str, line: str) -> bool:
    jump = _JUMP_TO_OURS.search(line)
    return jump is not None and jump[1] in FIXED_CHAINS[table]


def owner_of(line: str) -> str:
    """Return whose a rule is that iptables-save lists; conditions may have brought a comment too, ours comes after it."""
    comments = _COMMENT.findall(line) if line.startswith(_OURS) else []
    if not comments:
        return ""
    quoted, plain = comments[-1]
    return re.sub(r"\\(.)", r"\1", quoted) or plain


def remove_owners(script: Script, listing: Listing, owners: set[str]) -> Script:
    """Take away all that is there in these names.

    Chains are written anew without it: not every match that iptables-save lists is found again by -D (ctorigdst).
    """
    for table, names in FIXED_CHAINS.items():
        for name in names:
            lines = listing.lines_of(table, name)
            kept = [line for line in lines if owner_of(line) not in owners]
            if kept != lines:
                script.make_chains(table, [name])
                script.keep_lines(table, kept)
    script.remove_chains("nat", sorted(listing.chains_in_name_of(owners)))
    return script


def restore_listed(script: Script, listing: Listing, before: Listing, owners: set[str]) -> Script:
    """Make our chains, and those of these owners, what they were when they were listed before."""
    for table, names in FIXED_CHAINS.items():
        for name in names:
            if name in before.chains[table] and listing.lines_of(table, name) != before.lines_of(table, name):
                script.make_chains(table, [name])
                script.keep_lines(table, before.lines_of(table, name))
    for chain in sorted(before.chains_in_name_of(owners)):
        script.make_chains("nat", [chain])
        script.keep_lines("nat", before.lines_of("nat", chain))
    script.remove_chains("nat", sorted(listing.chains_in_name_of(owners) - before.chains_in_name_of(owners)))
    return script


def begin_anew(script: Script, listing: Listing, owners: set[str], family: int) -> Script:
    """Make our chains, the rules in them and the jumps to them, without what is there in these names.

    What has another owner stays: another state directory may know it.
    """
    for table, names in FIXED_CHAINS.items():
        script.make_chains(table, names)
    for table, line in listing.rules:
        if not line.startswith(_OURS):
            script.delete_line(table, line)
    script.change(fixed_rules(family))
    for table, names in FIXED_CHAINS.items():
        for name in names:
            script.keep_lines(table, [a for a in listing.lines_of(table, name) if owner_of(a) not in {"", *owners}])
    script.remove_chains("nat", sorted(listing.chains_in_name_of(owners)))
    return script
