"""The text that iptables' programs read and write: scripts for iptables-restore, listings of iptables-save. No I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .rules import FIXED_CHAINS, chains_of, fixed_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .rules import Rule

TABLES = ("raw", "filter", "nat")  # the guards are in place before the ports that they guard
_OURS = "-A QUANTUM-"
_COMMENT = re.compile(r'--comment (?:"((?:[^"\\]|\\.)*)"|(\S+))')
_JUMP_TO_OURS = re.compile(r" -[jg] (QUANTUM-\S+)")


def _nobody(_: str) -> bool:
    return False


class Names:
    """Reads the owners of rules, for one state directory.

    Like the comments of table `inet quantum`, those of rules end with the realm of the state directory that has the owner's record, unless it
    is the usual one. Here, owners of other state directories have a colon. Version 1.0.0 wrote no realm: its rules belong to this directory if
    their owner is on record here.
    """

    def __init__(self, realm: str = "", is_recorded: Callable[[str], bool] = _nobody) -> None:
        """realm: see State.realm. is_recorded: whether an owner has a readable record here."""
        self.realm = realm
        self._is_recorded = is_recorded
        self._recorded: dict[str, bool] = {}

    def owner_of(self, line: str) -> str:
        """Return the owner of a rule as iptables-save lists it; empty if it has none."""
        comment = _comment_in(line)
        owner, colon, realm = comment.partition(":")
        if colon + realm == self.realm or (not colon and self._has(owner)):
            return owner
        return comment if colon or not comment else f"{comment}:"

    def is_of_1_0_0(self, line: str) -> bool:
        """Whether a rule of ours lacks the realm."""
        comment = _comment_in(line)
        return bool(self.realm and comment) and ":" not in comment and self._has(comment)

    def chains_of(self, owner: str) -> set[str]:
        """Return the names of the chains that an owner may have."""
        if ":" in owner:
            return set(chains_of(owner.removesuffix(":")))
        names = set(chains_of(owner + self.realm))
        return names.union(chains_of(owner)) if self._has(owner) else names

    def _has(self, owner: str) -> bool:
        if owner not in self._recorded:
            self._recorded[owner] = self._is_recorded(owner)
        return self._recorded[owner]


def _comment_in(line: str) -> str:
    """Return the comment of a rule of ours. Conditions may have comments too: ours is the last."""
    comments = _COMMENT.findall(line) if line.startswith(_OURS) else []
    if not comments:
        return ""
    quoted, plain = comments[-1]
    return re.sub(r"\\(.)", r"\1", quoted) or plain


class Script:
    """The input of iptables-restore, by table; each table changes as a whole or not at all."""

    def __init__(self) -> None:
        self._made: dict[str, dict[str, None]] = {table: {} for table in TABLES}
        self._removed: dict[str, dict[str, None]] = {table: {} for table in TABLES}
        self._changes: dict[str, list[str]] = {table: [] for table in TABLES}

    def make_chains(self, table: str, names: Iterable[str]) -> None:
        """Create chains, or flush them if they exist, before anything else happens."""
        self._made[table].update(dict.fromkeys(names))

    def remove_chains(self, table: str, names: Iterable[str]) -> None:
        """Remove chains, whether they exist or not, after everything else; not those that are also made."""
        self._removed[table].update(dict.fromkeys(names))

    def change(self, rules: Iterable[Rule], operation: str = "") -> None:
        """Add rules; with -D delete them, with -C check that they exist."""
        for rule in rules:
            self._changes[rule.table].append(rule.line(operation))

    def keep_lines(self, table: str, lines: Iterable[str]) -> None:
        """Add the rules of a flushed chain again, as iptables-save listed them."""
        self._changes[table] += lines

    def delete_line(self, table: str, line: str) -> None:
        """Delete a rule that iptables-save listed."""
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
    """The output of iptables-save: by table, the names of all chains, our rules, and the jumps to our chains.

    Rules of other programs are left out: there may be tens of thousands.
    """

    def __init__(self, text: str, names: Names | None = None) -> None:
        self._names = names or Names()
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
        """Return the owners of all rules."""
        return {owner for _, line in self.rules if (owner := self.owner_of(line))}

    def owner_of(self, line: str) -> str:
        """Return the owner of one of the rules; empty if it has none."""
        return self._names.owner_of(line)

    @property
    def is_older(self) -> bool:
        """Whether rules of this state directory do not say so: 1.0.0 made them."""
        return any(self._names.is_of_1_0_0(line) for _, line in self.rules)

    def has_all_fixed(self, family: int) -> bool:
        """Whether our chains exist, and the rules that do not belong to a container."""
        rules = set(self.rules)
        return all((rule.table, rule.line("-A")) in rules for rule in fixed_rules(family)) and all(
            self.chains[table].issuperset(names) for table, names in FIXED_CHAINS.items()
        )

    def lines_of(self, table: str, chain: str) -> list[str]:
        """Return the rules of one of our chains, in order."""
        return [line for of_table, line in self.rules if of_table == table and line.startswith(f"-A {chain} ")]

    def chains_in_name_of(self, owners: Iterable[str]) -> set[str]:
        """Return the existing chains of these owners."""
        return {chain for owner in owners for chain in self._names.chains_of(owner)} & self.chains["nat"]


def _leads_to_us(table: str, line: str) -> bool:
    jump = _JUMP_TO_OURS.search(line)
    return jump is not None and jump[1] in FIXED_CHAINS[table]


def remove_owners(script: Script, listing: Listing, owners: set[str]) -> Script:
    """Remove all rules of these owners.

    Their chains are written again without these rules: -D does not find every match as iptables-save lists it (ctorigdst).
    """
    for table, names in FIXED_CHAINS.items():
        for name in names:
            lines = listing.lines_of(table, name)
            kept = [line for line in lines if listing.owner_of(line) not in owners]
            if kept != lines:
                script.make_chains(table, [name])
                script.keep_lines(table, kept)
    script.remove_chains("nat", sorted(listing.chains_in_name_of(owners)))
    return script


def restore_listed(script: Script, listing: Listing, before: Listing, owners: set[str]) -> Script:
    """Restore our chains, and those of these owners, as they were listed before."""
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
    """Make our chains, their fixed rules and the jumps to them again, without the rules of these owners.

    Rules of other owners stay: another state directory may have their records.
    """
    for table, names in FIXED_CHAINS.items():
        script.make_chains(table, names)
    for table, line in listing.rules:
        if not line.startswith(_OURS):
            script.delete_line(table, line)
    script.change(fixed_rules(family))
    for table, names in FIXED_CHAINS.items():
        for name in names:
            lines = listing.lines_of(table, name)
            script.keep_lines(table, [line for line in lines if listing.owner_of(line) not in {"", *owners}])
    script.remove_chains("nat", sorted(listing.chains_in_name_of(owners)))
    return script
