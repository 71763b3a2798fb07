"""Where kernel and records disagree, and how they are made to agree: for each backend in one transaction.

Used under the lock of the state directory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...backends.iptables.programs import PREFIXES, list_rules
from ...backends.iptables.provider import IptablesBackend, families_of, missing_rules
from ...backends.iptables.rules import in_force
from ...backends.nftables.full_plan import JointPlan
from ...backends.nftables.layout import SHARED, SLOTS
from ...backends.nftables.programs import add_policies
from ...backends.nftables.provider import NftablesBackend
from ...backends.nftables.sharing import Change, redeal
from ...backends.nftables.table import NftablesTable
from ...model.attachments import IPTABLES, NFTABLES
from ...model.errors import NotThere
from ..progress import waiting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...backends.nftables.rules import Element
    from ...state.directory import State
    from ..records import Records


class Disagreement(NamedTuple):
    """One thing that the kernel has and should not have, or lacks.

    change: what puts it right: "add", "delete", "replace", "rebuild". what: the thing, as the kernel's program says it.
    owner: whose it is, NETWORK/CONTAINER/INTERFACE; empty where it is nobody's. why: what is wrong.
    """

    change: str
    what: str
    owner: str
    why: str


class Agreement:
    """What there is to do in one backend; nothing, where `disagreements` is empty."""

    backend: str
    disagreements: list[Disagreement]

    def establish(self) -> None:
        """Do it, in one transaction."""
        raise NotImplementedError


class NftablesAgreement(Agreement):
    """Table `inet quantum` against the records."""

    backend = NFTABLES

    def __init__(self, state: State, records: Records) -> None:
        """Read what the kernel has."""
        self._backend = NftablesBackend(state)
        self._plan = JointPlan(records.of_backend(NFTABLES))
        self._table = NftablesTable()
        self._change = Change()
        self._damage = self._find_damage(records)
        if not self._damage:
            with waiting("Listing the kernel's elements"):
                self._held = self._table.owned_elements()
            self._change = compare(self._plan, self._held, records.unreadable)
        self.disagreements = list(self._describe())

    def establish(self) -> None:
        """Change the elements; where the table itself is damaged, build it anew with all of them."""
        if self._damage:
            self._rebuild()
            return
        add_policies([e.policy for e in self._change.add if e.policy and not e.policy.is_ordinary])
        try:
            with waiting("Changing the kernel's elements"):
                self._backend.make(self._change)
        except NotThere:  # somebody took the table away since it was listed
            self._rebuild()

    def _rebuild(self) -> None:
        with waiting("Building table inet quantum"):
            self._backend.rebuild(self._plan.elements)

    def _find_damage(self, records: Records) -> list[str]:
        if not self._table.exists():
            return ["the table is missing"] if records.of_backend(NFTABLES) else []
        return self._table.damaged_chains()

    def _describe(self) -> Iterator[Disagreement]:
        for damage in self._damage:
            yield Disagreement("rebuild", "table inet quantum", "", damage)
        wanted = {element.identity: element for element in self._change.add}
        for element in self._change.delete:
            if element.identity in wanted:
                instead = wanted.pop(element.identity)
                yield Disagreement("replace", str(element), element.owner, f"should be {instead} of {instead.owner}")
            else:
                yield Disagreement("delete", str(element), element.owner, "nothing on record asks for it")
        for element in wanted.values():
            yield Disagreement("add", str(element), element.owner, "missing")


def compare(plan: JointPlan, held: Iterable[Element], unreadable: set[str]) -> Change:
    """Return what leads from what the kernel holds to the plan; what is there for `unreadable` owners stays."""
    kept = {*unreadable, SHARED} if unreadable else set()
    of_key = {element.identity: element for element in held}
    change = Change()
    for identity, wanted in plan.placed.items():
        found = of_key.pop(identity, None)
        if found is not None and any(map(found.is_same, (wanted, *plan.alternatives.get(identity, ())))):
            continue
        change.include(Change([found] if found else [], [wanted]))
    for members in plan.shares.values():
        share = members[0]
        slots = [of_key.pop(share.slot(number).identity, None) for number in range(SLOTS)]
        owners = {member.owner: member for member in members[:SLOTS]}
        staying = [slot.owner for slot in slots if slot and slot.owner in unreadable]
        change.include(redeal(share, slots, list(dict.fromkeys((*owners, *staying))), owners))
    change.delete += [element for element in of_key.values() if element.owner not in kept]
    return change


class IptablesAgreement(Agreement):
    """Chains QUANTUM-... against the records; what is wrong is told by family, the first missing rule of each."""

    backend = IPTABLES

    def __init__(self, state: State, records: Records) -> None:
        """Read what the kernel has."""
        self._backend = IptablesBackend(state)
        self._orphans: dict[int, set[str]] = {}
        self.disagreements = []
        attachments = in_force(records.of_backend(IPTABLES))
        for family in PREFIXES:
            concerned = [attachment for attachment in attachments if family in families_of(attachment)]
            problems = missing_rules(family, concerned) if concerned else []
            orphans = list_rules(family).owners() - records.owners
            if problems or orphans:
                self._orphans[family] = orphans
            self.disagreements += [_rebuild_because(family, problem) for problem in problems]
            self.disagreements += [_of_nobody(family, owner) for owner in sorted(orphans)]

    def establish(self) -> None:
        """Make the chains anew, with the rules of every record."""
        for family, orphans in self._orphans.items():
            with waiting(f"Making the chains of {PREFIXES[family]}"):
                self._backend.rebuild(family, orphans)


def _rebuild_because(family: int, problem: str) -> Disagreement:
    return Disagreement("rebuild", f"chains QUANTUM-... of {PREFIXES[family]}", "", problem)


def _of_nobody(family: int, owner: str) -> Disagreement:
    return Disagreement("delete", f"rules of {PREFIXES[family]}", owner, "nothing on record asks for them")


def agreements(state: State, records: Records) -> list[Agreement]:
    """Compare each backend that is, or was, in use here."""
    found: list[Agreement] = [NftablesAgreement(state, records)]
    if state.has_iptables():
        found.append(IptablesAgreement(state, records))
    return found
