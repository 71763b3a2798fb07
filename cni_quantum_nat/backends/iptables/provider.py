"""Backend Provider for iptables: list the rules with iptables-save, change them with one iptables-restore for each family.

Each table changes as a whole or not at all. Both variants of iptables, nft and legacy, read the same scripts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...connections.counts import note_lost
from ...kernel.stderr import warn
from ...model.addresses import Address
from ...model.attachments import IPTABLES, AttachmentId
from ...model.conditions import require_conditions
from ...model.errors import NOT_AVAILABLE, CniError, InvalidConfiguration
from ...model.units import Overlaps
from ..base import Applied, Backend, RulesDamaged, is_of_network
from .programs import PREFIXES, DoesNotFit, find_program, list_rules, restore, try_to_restore
from .rules import FIXED_CHAINS, chains_of, fixed_rules, plan_rules, units_of
from .text import Listing, Names, Script, begin_anew, remove_owners, restore_listed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from ...model.attachments import Attachment
    from ...model.units import Unit
    from ...state.directory import State
    from ..base import Change, Installed, Plan
    from .rules import Rule


class IptablesBackend(Backend):
    """Chains QUANTUM-... of this process's network namespace."""

    name = IPTABLES
    arbitrates = False

    def __init__(self, state: State) -> None:
        self._state = state
        self._names = names_of(state)
        self._listings: dict[int, Listing] = {}

    def holders(self, units: Collection[Unit]) -> tuple[dict[Unit, list[str]], set[Unit]]:
        """Look for the units in all rules; iptables has no shared ports."""
        wanted = Overlaps(units)
        holders: dict[Unit, list[str]] = {}
        for family in sorted({unit.family for unit in units}):
            listing = self._listing(family)
            for _, line in listing.rules:
                for unit in units_of(line, family):
                    owner = listing.owner_of(line)
                    if wanted.of(unit) and owner not in holders.setdefault(unit, []):
                        holders[unit].append(owner)
        return holders, set()

    def require_intact(self, families: Collection[int]) -> None:
        """Check the fixed chains and rules, and that all rules name their state directory."""
        listings = {family: self._listing(family) for family in families}
        if not all(listing.has_all_fixed(family) for family, listing in listings.items()):
            raise RulesDamaged("chains QUANTUM-... are missing or were altered")
        if any(listing.is_older for listing in listings.values()):
            raise RulesDamaged("rules of an older version do not name their state directory")

    def apply(self, change: Change) -> Applied:
        """Change the rules."""
        attachments = [*change.remove, *(installed.attachment for installed in change.install)]
        families = families_of(*attachments) if not change.orphans else list(PREFIXES)
        for family in families:
            find_program(family, "restore")
        if change.install:
            self._state.note_iptables()
            self.require_intact(families_of(*attachments))
        losers = {*change.orphans, *(attachment.id.owner for attachment in change.remove)}
        losers.update(installed.attachment.id.owner for installed in change.install if not installed.in_addition)
        addresses = self._addresses_left(change.remove, losers)
        before = {family: self._listing(family) for family in families}
        done: list[int] = []

        def undo() -> None:
            for family in done:
                self._restore(family, restore_listed(Script(), self._listing(family), before[family], losers | added))

        added = {installed.attachment.id.owner for installed in change.install}
        try:
            for family in families:
                script = remove_owners(Script(), before[family], losers)
                for installed in change.install:
                    self._add_rules(script, installed, family)
                self._restore(family, script)
                done.append(family)
        except BaseException as error:
            _undo_after(error, undo)
            raise
        return Applied(undo, addresses)

    def differences(self, installed: Installed) -> list[str]:
        """Check every rule. For each family, only the first missing rule is named."""
        families = families_of(installed.attachment)
        return [problem for family in families for problem in self.missing_rules(family, [installed])]

    def missing_rules(self, family: int, installed: list[Installed]) -> list[str]:
        """Check the fixed rules and those of the attachments, and name the first missing rule."""
        script = Script()
        script.change(fixed_rules(family), "-C")
        try:
            for one in installed:
                script.change(self._plan_rules(one, family), "-C")
            try_to_restore(family, script)
        except DoesNotFit as difference:
            return [difference.as_problem]
        except InvalidConfiguration as error:
            return [error.message]
        return []

    def rebuild(self, plan: Plan, known: Collection[str], expected: Iterable[Installed] = ()) -> None:
        """Make all chains again, with the rules of the plan."""
        for family in PREFIXES:
            concerned = any(family in installed.attachment.families for installed in (*plan.installed, *expected))
            if concerned or self._listing(family).rules:
                self.rebuild_family(family, plan, known)

    def rebuild_family(self, family: int, plan: Plan, known: Collection[str]) -> None:
        """Make the chains of one family again. Rules of owners that are not known stay."""
        listing, owners = list_rules(family, self._names), set(known)
        script = begin_anew(Script(), listing, owners, family)
        try:
            for installed in plan.installed:
                self._add_rules(script, installed, family)
            try_to_restore(family, script)
        except (DoesNotFit, InvalidConfiguration):
            self._rebuild_in_part(begin_anew(Script(), listing, owners, family), plan, family)
        self._listings.clear()
        note_lost(self._state, PREFIXES[family], {})  # what the last scrape saw is all that is known of the lost rules

    def owners(self, network: str) -> set[str]:
        """List all rules."""
        listed = {owner for family in PREFIXES for owner in self._listing(family).owners()}
        return {owner for owner in listed if is_of_network(owner, network)}

    def require(self) -> None:
        """Let iptables-restore test our chains without adding them."""
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
        """List the rules of a family. Once, until we change them: under the lock nobody else does."""
        if family not in self._listings:
            self._listings[family] = list_rules(family, self._names)
        return self._listings[family]

    def _restore(self, family: int, script: Script) -> None:
        self._listings.pop(family, None)
        restore(family, script)

    def _addresses_left(self, removed: list[Attachment], losers: set[str]) -> list[Address]:
        """Return the addresses of removed attachments that no other attachment has."""
        units = {unit for attachment in removed for unit in attachment.address_units}
        holders, _ = self.holders(units)
        free = [unit for unit in units if losers.issuperset(holders.get(unit, ()))]
        return [unit for unit in free if isinstance(unit, Address)]

    def _plan_rules(self, installed: Installed, family: int) -> list[Rule]:
        """Return the rules. InvalidConfiguration if iptables-restore would look up a name for them, or if a port is not for all clients."""
        _refuse_filters(installed.attachment)
        require_conditions(family, installed.attachment.inbound.conditions.get(family, ()))
        return plan_rules(installed.attachment, family, installed.units, self._names.realm)

    def _add_rules(self, script: Script, installed: Installed, family: int) -> None:
        rules = self._plan_rules(installed, family)
        if rules:
            if not installed.in_addition:
                script.make_chains("nat", chains_of(installed.attachment.id.owner + self._names.realm))
            script.change(rules)

    def _rebuild_in_part(self, script: Script, plan: Plan, family: int) -> None:
        """Rebuild although something is missing that an attachment needs, such as another program's chain: leave that attachment out."""
        restore(family, script)
        for installed in plan.installed:
            alone = Script()
            try:
                self._add_rules(alone, installed, family)
                try_to_restore(family, alone)
            except DoesNotFit as error:
                warn(error.as_error())
            except InvalidConfiguration as error:
                warn(InvalidConfiguration(f"{installed.attachment.id} is left out: {error.message}", error.details))


def names_of(state: State) -> Names:
    """Return how the rules of a state directory are read."""

    def is_recorded(owner: str) -> bool:
        identity = AttachmentId.of_owner(owner)
        try:
            return identity is not None and state.read(identity) is not None
        except CniError:
            return False  # its rules are left alone, like those of another state directory

    return Names(state.realm, is_recorded)


def _refuse_filters(attachment: Attachment) -> None:
    """Refuse ports that are for some clients only. The network's keys were refused before, unless its backend has changed since."""
    inbound = attachment.inbound
    for mapping in attachment.port_mappings:
        for key, names in zip(("publishOn", "allowFrom"), inbound.filters_of(mapping)):
            if names:
                raise InvalidConfiguration(
                    f'port mapping {mapping} has {key}, which is not supported by backend "iptables"',
                    f'Leave {key} out, or use "backend": "nftables".',
                )


def families_of(*attachments: Attachment) -> list[int]:
    """Return the families that the attachments have rules in."""
    return sorted({family for attachment in attachments for family in attachment.families})


def _undo_after(cause: BaseException, undo: Callable[[], None]) -> None:
    """Undo what was done so far. A failure of the undo becomes a note of the first failure."""
    try:
        undo()
    except CniError as error:
        cause.add_note(f"Undoing it failed too: {error.message}.")
