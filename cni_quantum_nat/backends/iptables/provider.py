"""Backend Provider for iptables: one iptables-restore for each family and call, and with it one transaction for each table.

What a call changes is tried at once. Only when it does not fit, because the chains are not there or something is not as the
records say, are the rules listed (iptables-save) and the right script worked out from what is there. Both variants of
iptables, nft and legacy, read the same scripts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...connections.counts import note_lost
from ...kernel.stderr import warn
from ...model.attachments import IPTABLES, NFTABLES
from ...model.errors import NOT_AVAILABLE, CniError
from ..base import Backend, Holders, discard
from ..nftables.provider import NftablesBackend
from .programs import PREFIXES, DoesNotFit, find_program, list_rules, restore, try_to_restore
from .rules import FIXED_CHAINS, fixed_rules, in_force, own_chains, plan_rules
from .text import Script, begin_anew, remove_owners

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ...model.addresses import Address
    from ...model.attachments import Attachment
    from ...state.directory import State


class IptablesBackend(Backend):
    """Chains QUANTUM-..., healed from the records of one state directory."""

    name = IPTABLES

    def __init__(self, state: State) -> None:
        self._state = state
        self._holders = Holders(state)

    def install(self, attachment: Attachment, replaced: list[Attachment]) -> Callable[[], None]:
        """Make the attachment's rules; those of a dead container that held its ports go."""
        dead = self._holders.dead_holders(attachment)
        gone = [*replaced, *(holder for holder in dead if holder.backend == IPTABLES)]
        families = families_of(attachment, *gone)
        for family in families:
            find_program(family, "restore")
        self._state.note_iptables()
        try:
            for family in families:
                self._install(attachment, gone, family)
            self._remove_from_nftables([holder for holder in dead if holder.backend == NFTABLES])
        except BaseException as error:
            self._undo_after(error, attachment, replaced)
            raise
        return lambda: self._undo(attachment, replaced)

    def remove(self, attachment: Attachment) -> list[Address]:
        """Delete the attachment's rules; a sibling that wanted the same ports has rules for them already."""
        for family in families_of(attachment):
            self._remove(attachment, family)
        addresses = [endpoint.address for endpoint in attachment.endpoints]
        return [address for address in addresses if not self._holders.has_address(address, attachment.id)]

    def differences(self, attachment: Attachment) -> list[str]:
        """Look for every rule; of a family, the first that is missing is named."""
        return [problem for family in families_of(attachment) for problem in missing_rules(family, [attachment])]

    def remove_orphans(self, network: str, known: set[str]) -> None:
        """List all rules, and delete those of the network that nobody accounts for."""
        for family in PREFIXES:
            listing = list_rules(family)
            orphans = {o for o in listing.owners() if o.startswith(f"{network}/") and o not in known}
            if orphans:
                restore(family, remove_owners(Script(), listing, orphans))

    def rebuild(self, family: int, orphans: set[str], without: Collection[object] = ()) -> None:
        """Make all anew, with the rules of every record but those in `without`, and with none of the orphans."""
        damaged: list[CniError] = []
        leftovers: list[Attachment] = []
        recorded = [record for record in self._state.attachments(damaged, leftovers) if record.backend == IPTABLES]
        for error in damaged:
            warn(error)
        records = [record for record in in_force(recorded) if record.id not in without]
        owners = {record.id.owner for record in recorded} | orphans
        listing = list_rules(family)
        script = begin_anew(Script(), listing, owners, family)
        for record in records:
            _put(script, record, family)
        try:
            try_to_restore(family, script)
        except DoesNotFit:
            _heal_one_by_one(begin_anew(Script(), listing, owners, family), records, family)
        discard(self._state, leftovers)
        self._state.note_rebuild()
        note_lost(self._state, PREFIXES[family], {})  # what is there before is no more than the last scrape saw

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

    def _install(self, attachment: Attachment, gone: list[Attachment], family: int) -> None:
        script = Script()
        script.change(fixed_rules(family), "-C")
        _take_away(script, gone, family)
        _put(script, attachment, family)
        try:
            try_to_restore(family, script)
        except DoesNotFit:
            self._install_by_listing(attachment, gone, family)

    def _install_by_listing(self, attachment: Attachment, gone: list[Attachment], family: int) -> None:
        listing = list_rules(family)
        if not listing.has_all_fixed(family):
            self.rebuild(family, orphans=set(), without={attachment.id, *(a.id for a in gone)})
            listing = list_rules(family)
        script = remove_owners(Script(), listing, {a.id.owner for a in (attachment, *gone)})
        _put(script, attachment, family)
        restore(family, script)

    def _remove(self, attachment: Attachment, family: int) -> None:
        script = Script()
        _take_away(script, [attachment], family)
        try:
            try_to_restore(family, script)
        except DoesNotFit:
            restore(family, remove_owners(Script(), list_rules(family), {attachment.id.owner}))

    def _remove_from_nftables(self, attachments: list[Attachment]) -> None:
        """Remove what dead containers have there: its chains come first, and would keep their host ports."""
        if not attachments:
            return
        nftables = NftablesBackend(self._state)
        try:
            for attachment in attachments:
                nftables.remove(attachment)
        finally:
            nftables.close()

    def _undo(self, attachment: Attachment, replaced: list[Attachment]) -> None:
        for family in families_of(attachment, *replaced):
            script = remove_owners(Script(), list_rules(family), {attachment.id.owner})
            for former in replaced[:1]:  # what it was last; the others were given up
                _put(script, former, family)
            restore(family, script)

    def _undo_after(self, cause: BaseException, attachment: Attachment, replaced: list[Attachment]) -> None:
        """Undo what was done by then; the runtime is told of the first failure, and of this one in its details."""
        try:
            self._undo(attachment, replaced)
        except CniError as error:
            cause.add_note(f"Undoing it failed too: {error.message}.")


def missing_rules(family: int, attachments: list[Attachment]) -> list[str]:
    """Look for every rule that is fixed or an attachment's, and name the first that is missing."""
    script = Script()
    script.change(fixed_rules(family), "-C")
    for attachment in attachments:
        script.change(plan_rules(attachment, family), "-C")
    try:
        try_to_restore(family, script)
    except DoesNotFit as difference:
        return [difference.as_problem]
    return []


def families_of(*attachments: Attachment) -> list[int]:
    """Return the families that the attachments have rules in."""
    return sorted({family for attachment in attachments for family in attachment.families})


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


def _heal_one_by_one(script: Script, records: list[Attachment], family: int) -> None:
    """Make all anew although some record needs what is not there, as another program's chain: leave that one out."""
    restore(family, script)
    for record in records:
        alone = Script()
        _put(alone, record, family)
        try:
            try_to_restore(family, alone)
        except DoesNotFit as error:
            warn(error.as_error())
