"""Backend Provider for iptables: the rules are listed (iptables-save), and one iptables-restore for each family changes them.

Each table's part of a change happens as a whole or not at all. Both variants of iptables, nft and legacy, read the same scripts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...connections.counts import note_lost
from ...kernel.stderr import warn
from ...model.addresses import Address
from ...model.attachments import IPTABLES
from ...model.errors import NOT_AVAILABLE, CniError
from ..base import Applied, Backend, RulesDamaged, is_of_network
from .programs import PREFIXES, DoesNotFit, find_program, list_rules, restore, try_to_restore
from .rules import FIXED_CHAINS, fixed_rules, own_chains, plan_rules, units_of
from .text import Listing, Script, begin_anew, owner_of, remove_owners, restore_listed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from ...model.attachments import Attachment
    from ...model.units import Unit
    from ...state.directory import State
    from ..base import Change, Installed, Plan


class IptablesBackend(Backend):
    """Chains QUANTUM-... of the network namespace that we are in."""

    name = IPTABLES
    arbitrates = False

    def __init__(self, state: State) -> None:
        self._state = state
        self._listings: dict[int, Listing] = {}

    def holders(self, units: Collection[Unit]) -> tuple[dict[Unit, list[str]], set[Unit]]:
        """Look for the units in all rules; iptables has no shared ports."""
        wanted = set(units)
        holders: dict[Unit, list[str]] = {}
        for family in sorted({unit.family for unit in wanted}):
            for _, line in self._listing(family).rules:
                for unit in units_of(line, family):
                    owner = owner_of(line)
                    if unit in wanted and owner not in holders.setdefault(unit, []):
                        holders[unit].append(owner)
        return holders, set()

    def apply(self, change: Change) -> Applied:
        """Change the rules."""
        attachments = [*change.remove, *(installed.attachment for installed in change.install)]
        families = families_of(*attachments) if not change.orphans else list(PREFIXES)
        for family in families:
            find_program(family, "restore")
        if change.install:
            self._state.note_iptables()
            if not all(self._listing(family).has_all_fixed(family) for family in families_of(*attachments)):
                raise RulesDamaged("chains QUANTUM-... are missing or were altered")
        losers = {*change.orphans, *(attachment.id.owner for attachment in change.remove)}
        losers.update(installed.attachment.id.owner for installed in change.install if not installed.in_addition)
        addresses = self._addresses_left(change.remove, losers)
        before = {family: self._listing(family) for family in families}
        done: list[int] = []

        def undo() -> None:
            for family in done:
                self._restore(family, restore_listed(Script(), list_rules(family), before[family], losers | added))

        added = {installed.attachment.id.owner for installed in change.install}
        try:
            for family in families:
                script = remove_owners(Script(), before[family], losers)
                for installed in change.install:
                    _put(script, installed, family)
                self._restore(family, script)
                done.append(family)
        except BaseException as error:
            _undo_after(error, undo)
            raise
        return Applied(undo, addresses)

    def differences(self, installed: Installed) -> list[str]:
        """Look for every rule; of a family, the first that is missing is named."""
        families = families_of(installed.attachment)
        return [problem for family in families for problem in missing_rules(family, [installed])]

    def rebuild(self, plan: Plan, known: Collection[str], expected: Iterable[Installed] = ()) -> None:
        """Make all chains anew, with the rules of the plan."""
        for family in PREFIXES:
            concerned = any(family in installed.attachment.families for installed in (*plan.installed, *expected))
            if concerned or self._listing(family).rules:
                self.rebuild_family(family, plan, known)

    def rebuild_family(self, family: int, plan: Plan, known: Collection[str]) -> None:
        """Make the chains of one family anew; rules of owners who are not known stay."""
        listing, owners = list_rules(family), set(known)
        script = begin_anew(Script(), listing, owners, family)
        for installed in plan.installed:
            _put(script, installed, family)
        try:
            try_to_restore(family, script)
        except DoesNotFit:
            _rebuild_in_part(begin_anew(Script(), listing, owners, family), plan, family)
        self._listings.clear()
        note_lost(self._state, PREFIXES[family], {})  # what was there before is no more than the last scrape saw

    def owners(self, network: str) -> set[str]:
        """List all rules."""
        listed = {owner for family in PREFIXES for owner in self._listing(family).owners()}
        return {owner for owner in listed if is_of_network(owner, network)}

    def require(self) -> None:
        """Let iptables-restore take our chains without putting them in."""
        for family in PREFIXES:
            script = Script()
            for table, names in FIXED_CHAINS.items():
                script.make_chains(table, names)
            script.change(fixed_rules(family))
            try:
                try_to_restore(family, script, "--test")
            except DoesNotFit as error:
                raise error.as_error(NOT_AVAILABLE) from error

    def close(self) -> None:
        """Nothing is open."""

    def _listing(self, family: int) -> Listing:
        """List the rules of a family; once, until they change: everything happens under the lock."""
        if family not in self._listings:
            self._listings[family] = list_rules(family)
        return self._listings[family]

    def _restore(self, family: int, script: Script) -> None:
        self._listings.pop(family, None)
        restore(family, script)

    def _addresses_left(self, removed: list[Attachment], losers: set[str]) -> list[Address]:
        """Return the addresses of removed attachments that nobody else has."""
        units = {unit for attachment in removed for unit in attachment.address_units}
        holders, _ = self.holders(units)
        free = [unit for unit in units if losers.issuperset(holders.get(unit, ()))]
        return [unit for unit in free if isinstance(unit, Address)]


def missing_rules(family: int, installed: list[Installed]) -> list[str]:
    """Look for every rule that is fixed or an attachment's, and name the first that is missing."""
    script = Script()
    script.change(fixed_rules(family), "-C")
    for one in installed:
        script.change(plan_rules(one.attachment, family, one.units), "-C")
    try:
        try_to_restore(family, script)
    except DoesNotFit as difference:
        return [difference.as_problem]
    return []


def families_of(*attachments: Attachment) -> list[int]:
    """Return the families that the attachments have rules in."""
    return sorted({family for attachment in attachments for family in attachment.families})


def _put(script: Script, installed: Installed, family: int) -> None:
    rules = plan_rules(installed.attachment, family, installed.units)
    if rules:
        if not installed.in_addition:
            script.make_chains("nat", own_chains(installed.attachment))
        script.change(rules)


def _rebuild_in_part(script: Script, plan: Plan, family: int) -> None:
    """Make all anew although an attachment needs what is not there, such as another program's chain: leave that one out."""
    restore(family, script)
    for installed in plan.installed:
        alone = Script()
        _put(alone, installed, family)
        try:
            try_to_restore(family, alone)
        except DoesNotFit as error:
            warn(error.as_error())


def _undo_after(cause: BaseException, undo: Callable[[], None]) -> None:
    """Undo what was done by then; the runtime is told of the first failure, and of this one in its details."""
    try:
        undo()
    except CniError as error:
        cause.add_note(f"Undoing it failed too: {error.message}.")
