"""Backend Provider for iptables: one iptables-restore for each family and call, and with it one transaction for each table.

What a call changes is tried at once. Only when it does not fit, because the chains are not there or something is not as the
records say, are the rules listed (iptables-save) and the right script worked out from what is there. Both variants of
iptables, nft and legacy, read the same scripts.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

from ..hotpath.backend import Backend, Holders, warn
from ..hotpath.errors import KERNEL_REFUSED, NOT_AVAILABLE, CniError
from ..hotpath.model import IPTABLES
from .iptables_rules import FIXED_CHAINS, Rule, chains_of, fixed_rules, own_chains, plan_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..hotpath.addresses import Address
    from ..hotpath.model import Attachment
    from ..hotpath.state import State

_PREFIXES = {4: "iptables", 6: "ip6tables"}
_DIRECTORIES = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin"
_TABLES = ("raw", "filter", "nat")  # what guards is there before what it guards against


class _DoesNotFit(Exception):
    """iptables-restore did not take a script; `line` is the one that it stopped at."""

    def __init__(self, complaint: str, line: str) -> None:
        super().__init__(complaint)
        self.line = line


class Script:
    """What iptables-restore is to do, by table; each table's part happens as a whole or not at all."""

    def __init__(self) -> None:
        self._made: dict[str, dict[str, None]] = {table: {} for table in _TABLES}
        self._removed: dict[str, dict[str, None]] = {table: {} for table in _TABLES}
        self._changes: dict[str, list[str]] = {table: [] for table in _TABLES}

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

    def delete_line(self, table: str, line: str) -> None:
        """Delete a rule as iptables-save lists it."""
        self._changes[table].append(line.replace("-A", "-D", 1))

    @property
    def text(self) -> str:
        return "".join(map(self._part, _TABLES))

    def _part(self, table: str) -> str:
        made, removed = self._made[table], self._removed[table]
        lines = [
            *(f":{name} - [0:0]" for name in {**made, **removed}),
            *self._changes[table],
            *(f"-X {name}" for name in removed if name not in made),
        ]
        return "\n".join([f"*{table}", *lines, "COMMIT\n"]) if lines else ""


class Listing:
    """What iptables-save said: by table the names of all chains, and the rules."""

    def __init__(self, text: str) -> None:
        self.chains: dict[str, set[str]] = {table: set() for table in _TABLES}
        self.rules: list[tuple[str, str]] = []
        table = ""
        for line in text.splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif table in self.chains and line.startswith(":"):
                self.chains[table].add(line[1:].partition(" ")[0])
            elif table in self.chains and line.startswith("-A"):
                self.rules.append((table, line))

    def owners(self) -> set[str]:
        """Return whose rules there are."""
        return {owner for _, line in self.rules if (owner := _owner_of(line))}

    def has_all_fixed(self, family: int) -> bool:
        """Whether our chains are there; the rules between them are looked for by what is tried first."""
        wanted = {rule.table for rule in fixed_rules(family)}
        return all(self.chains[table].issuperset(FIXED_CHAINS[table]) for table in wanted)


def _owner_of(line: str) -> str:
    words = shlex.split(line)
    is_ours = len(words) > 1 and words[1].startswith("QUANTUM-") and "--comment" in words
    return words[words.index("--comment") + 1] if is_ours else ""


class IptablesBackend(Backend):
    """Chains QUANTUM-..., healed from the records of one state directory."""

    name = IPTABLES

    def __init__(self, state: State) -> None:
        self._state = state
        self._holders = Holders(state)

    def install(self, attachment: Attachment, replaced: Attachment | None) -> Callable[[], None]:
        """Make the attachment's rules; those of a dead container that held its ports go."""
        gone = [*([replaced] if replaced else []), *self._holders.dead_holders(attachment)]
        self._state.note_iptables()
        try:
            for family in _families_of(attachment, *gone):
                self._install(attachment, gone, family)
        except BaseException:
            self._undo(attachment, replaced)
            raise
        return lambda: self._undo(attachment, replaced)

    def remove(self, attachment: Attachment) -> list[Address]:
        """Delete the attachment's rules; a sibling that wanted the same ports has rules for them already."""
        for family in _families_of(attachment):
            self._remove(attachment, family)
        addresses = [endpoint.address for endpoint in attachment.endpoints]
        return [address for address in addresses if not self._holders.has_address(address, attachment.id)]

    def differences(self, attachment: Attachment) -> list[str]:
        """Look for every rule; of a family, the first that is missing is named."""
        problems = []
        for family in _families_of(attachment):
            script = Script()
            script.change([*fixed_rules(family), *plan_rules(attachment, family)], "-C")
            try:
                _restore(family, script)
            except _DoesNotFit as difference:
                rule = difference.line.removeprefix("-C ") or str(difference)
                problems.append(f"{_PREFIXES[family]} has no rule {rule}")
        return problems

    def remove_orphans(self, network: str, known: set[str]) -> None:
        """List all rules, and delete those of the network that nobody accounts for."""
        for family in (4, 6):
            listing = _listing(family)
            orphans = {o for o in listing.owners() if o.startswith(f"{network}/") and o not in known}
            if orphans:
                _restore_or_raise(family, _purge(Script(), listing, orphans))

    def require(self) -> None:
        """Let iptables-restore take our chains without putting them in."""
        for family in (4, 6):
            script = Script()
            _make_fixed(script, family)
            _restore_or_raise(family, script, "--test")

    def _install(self, attachment: Attachment, gone: list[Attachment], family: int) -> None:
        script = Script()
        script.change(fixed_rules(family), "-C")
        _take_away(script, gone, family)
        _put(script, attachment, family)
        try:
            _restore(family, script)
        except _DoesNotFit:
            self._install_by_listing(attachment, gone, family)

    def _install_by_listing(self, attachment: Attachment, gone: list[Attachment], family: int) -> None:
        listing = _listing(family)
        script = Script()
        if listing.has_all_fixed(family):
            _repair_fixed(script, listing, family)
            _purge(script, listing, {attachment.id.owner, *(a.id.owner for a in gone)})
        else:
            self._rebuild(script, listing, {attachment.id, *(a.id for a in gone)}, family)
        _put(script, attachment, family)
        _restore_or_raise(family, script)

    def _rebuild(self, script: Script, listing: Listing, without: set[object], family: int) -> None:
        """Make all anew, with the rules of every record but these."""
        damaged: list[CniError] = []
        records = sorted(self._state.attachments(damaged), key=lambda a: a.created_at)
        for error in damaged:
            warn(error)
        _purge(script, listing, listing.owners(), rules_too=False)
        _repair_fixed(script, listing, family)
        for record in records:
            if record.backend == IPTABLES and record.id not in without:
                _put(script, record, family)
        self._state.note_rebuild()

    def _remove(self, attachment: Attachment, family: int) -> None:
        script = Script()
        _take_away(script, [attachment], family)
        try:
            _restore(family, script)
        except _DoesNotFit:
            _restore_or_raise(family, _purge(Script(), _listing(family), {attachment.id.owner}))

    def _undo(self, attachment: Attachment, replaced: Attachment | None) -> None:
        for family in _families_of(attachment):
            _restore_or_raise(family, _purge(Script(), _listing(family), {attachment.id.owner}))
        for family in _families_of(replaced) if replaced else ():
            self._install(replaced, [], family)  # type: ignore[arg-type]


def _families_of(*attachments: Attachment) -> list[int]:
    families = set()
    for attachment in attachments:
        families |= {*attachment.outbound.masquerade, *attachment.published_families}
    return sorted(families)


def _put(script: Script, attachment: Attachment, family: int) -> None:
    rules = plan_rules(attachment, family)
    if rules:
        script.make_chains("nat", own_chains(attachment))
        script.change(rules)


def _take_away(script: Script, attachments: list[Attachment], family: int) -> None:
    for attachment in attachments:
        chains = own_chains(attachment)
        rules = plan_rules(attachment, family)
        script.change([rule for rule in rules if rule.chain not in chains], "-D")
        if rules:
            script.remove_chains("nat", chains)


def _purge(script: Script, listing: Listing, owners: set[str], *, rules_too: bool = True) -> Script:
    """Delete all that is there in these names."""
    chains = {chain for owner in owners for chain in chains_of(owner)}
    for table, line in listing.rules if rules_too else ():
        if _owner_of(line) in owners and line.split(" ", 2)[1] not in chains:
            script.delete_line(table, line)
    script.remove_chains("nat", sorted(chains & listing.chains["nat"]))
    return script


def _make_fixed(script: Script, family: int) -> None:
    for table, names in FIXED_CHAINS.items():
        script.make_chains(table, names)
    script.change(fixed_rules(family))


def _repair_fixed(script: Script, listing: Listing, family: int) -> None:
    """Put the fixed rules in their places, in place of those of them that are there; make chains that are not."""
    rules = fixed_rules(family)
    for table, names in FIXED_CHAINS.items():
        script.make_chains(table, [name for name in names if name not in listing.chains[table]])
    fixed = {(rule.table, rule.chain, rule.specification.rpartition("-j ")[2]) for rule in rules}
    for table, line in listing.rules:
        words = shlex.split(line)
        if "--comment" not in words and "-j" in words and (table, words[1], words[words.index("-j") + 1]) in fixed:
            script.delete_line(table, line)
    script.change(rules)


def _command(family: int, name: str) -> str:
    command = f"{_PREFIXES[family]}-{name}"
    path = shutil.which(command) or shutil.which(command, path=_DIRECTORIES)
    if path is None:
        raise CniError(
            NOT_AVAILABLE,
            f'backend is "iptables", but there is no {command}',
            "Install iptables, or leave out backend: nftables needs no program.",
        )
    return path


def _listing(family: int) -> Listing:
    done = subprocess.run([_command(family, "save")], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CniError(KERNEL_REFUSED, f"{_PREFIXES[family]}-save failed", " ".join(done.stderr.split())[:1000])
    return Listing(done.stdout)


def _restore(family: int, script: Script, *options: str) -> None:
    """Let iptables-restore do it; _DoesNotFit when it does not want to."""
    text = script.text
    if not text:
        return
    command = [_command(family, "restore"), "--noflush", "--wait", *options]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        number = re.search(r"line:? (\d+)", done.stderr)
        line = text.splitlines()[int(number[1]) - 1] if number else ""
        raise _DoesNotFit(" ".join(done.stderr.split())[:1000], line)


def _restore_or_raise(family: int, script: Script, *options: str) -> None:
    try:
        _restore(family, script, *options)
    except _DoesNotFit as error:
        at = f" at {error.line!r}" if error.line else ""
        raise CniError(KERNEL_REFUSED, f"{_PREFIXES[family]}-restore refused our rules{at}", str(error)) from error
