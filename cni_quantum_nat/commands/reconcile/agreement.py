"""Find where kernel and records disagree, and repair it, in one transaction for each backend.

Used under the lock of the state directory. nat/decision.py decides who owns what, as for every call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...backends.iptables.programs import PREFIXES, list_rules
from ...backends.iptables.provider import IptablesBackend, names_of
from ...backends.nftables.layout import BUCKET, SETS, SHARED
from ...backends.nftables.provider import Difference, NftablesBackend, elements_of, planned_buckets
from ...backends.nftables.rules import buckets_of, port_of
from ...backends.nftables.sharing import owners_of
from ...backends.nftables.table import MISSING, NftablesTable
from ...model.attachments import IPTABLES, NFTABLES
from ...nat.decision import decide_all
from ..progress import waiting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ...backends.base import Plan
    from ...backends.nftables.rules import Element
    from ...model.units import HostPort
    from ...nat.records import Records
    from ...state.directory import State


class Disagreement(NamedTuple):
    """Something that the kernel has and should not have, or lacks.

    change: the repair: "add", "delete", "replace" or "rebuild". what: the object, as nft or iptables names it.
    owner: NETWORK/CONTAINER/INTERFACE, empty if it has none. why: what is wrong.
    """

    change: str
    what: str
    owner: str
    why: str


class Agreement:
    """The differences in one backend; none if `disagreements` is empty."""

    backend: str
    disagreements: list[Disagreement]

    def establish(self) -> None:
        """Repair them, in one transaction."""
        raise NotImplementedError


class NftablesAgreement(Agreement):
    """Table `inet quantum` against the records."""

    backend = NFTABLES

    def __init__(self, state: State, records: Records, plan: Plan) -> None:
        """Read the kernel's rules."""
        self._backend = NftablesBackend(state)
        self._plan = plan.of_backend(NFTABLES)
        self._known = records.owners - records.unreadable
        self._difference = Difference()
        self._damage = self._backend.damage()
        if self._damage == [MISSING] and not self._plan.installed:
            self._damage = []
        elif not self._damage:
            table = NftablesTable(state.realm)
            with waiting("Listing the kernel's elements"):
                held = table.owned_elements()
            table.close()
            self._difference = compare(self._plan, held, records.unreadable | _waiting_for_gc(records))
        self.disagreements = list(self._describe())

    def establish(self) -> None:
        """Change the elements; if the table itself is damaged, rebuild it with all of them."""
        from ...backends.base import RulesDamaged

        if self._damage:
            self._rebuild()
            return
        try:
            with waiting("Changing the kernel's elements"):
                self._backend.establish(self._difference)
        except RulesDamaged:  # another program removed the table after it was listed
            self._rebuild()

    def _rebuild(self) -> None:
        with waiting("Building table inet quantum"):
            self._backend.rebuild(self._plan, self._known)

    def _describe(self) -> Iterator[Disagreement]:
        for damage in self._damage:
            yield Disagreement("rebuild", "table inet quantum", "", damage)
        wanted = {element.identity: element for element in self._difference.add}
        for element in self._difference.delete:
            if element.identity in wanted:
                instead = wanted.pop(element.identity)
                yield Disagreement("replace", str(element), element.owner, f"should be {instead} of {instead.owner}")
            else:
                yield Disagreement("delete", str(element), element.owner, "nothing on record asks for it")
        for element in wanted.values():
            yield Disagreement("add", str(element), element.owner, "missing")


def compare(plan: Plan, held: Iterable[Element], kept: set[str]) -> Difference:
    """Return the changes from the kernel's elements to the plan.

    Elements of `kept` owners stay, and so do those on record in another state directory.
    """
    of_key = {element.identity: element for element in held}
    difference = Difference()
    for wanted in elements_of(plan):
        difference.replace(of_key.pop(wanted.identity, None), wanted)
    for port, members in plan.shared.items():
        buckets = [of_key.pop(bucket.identity, None) for bucket in buckets_of(port)]
        staying = [owner for owner in owners_of(buckets) if owner in kept]
        for present, bucket in zip(buckets, planned_buckets(port, members, buckets, staying), strict=True):
            difference.replace(present, bucket)
    kept_ports = _shared_by(kept, of_key.values())
    for element in of_key.values():
        of_kept_port = element.owner == SHARED and port_of(element) in kept_ports
        if not (element.owner in kept or element.is_foreign or of_kept_port):
            difference.replace(element, None)
    return difference


def _waiting_for_gc(records: Records) -> set[str]:
    """Return the owners whose container is gone but whose record exists: DEL or gc removes record and rules together."""
    leftovers = {attachment.id for attachment in records.leftovers}
    return {attachment.id.owner for attachment in records.over if attachment.id not in leftovers}


def _shared_by(kept: set[str], held: Iterable[Element]) -> set[HostPort]:
    """Return the shared ports that one of these owners has buckets of."""
    return {port_of(e) for e in held if e.owner in kept and BUCKET in SETS[e.set_name].key}


class IptablesAgreement(Agreement):
    """Chains QUANTUM-... against the records. For each family, reports the first missing rule."""

    backend = IPTABLES

    def __init__(self, state: State, records: Records, plan: Plan) -> None:
        """Read the kernel's rules."""
        self._backend = IptablesBackend(state)
        self._plan = plan.of_backend(IPTABLES)
        self._known: dict[int, set[str]] = {}
        self.disagreements = []
        recorded = {attachment.id.owner for attachment in records.of_backend(IPTABLES)} | records.unreadable
        for family in PREFIXES:
            concerned = [one for one in self._plan.installed if family in one.attachment.families]
            problems = self._backend.missing_rules(family, concerned) if concerned else []
            owners = list_rules(family, names_of(state)).owners()
            orphans = {owner for owner in owners - recorded if ":" not in owner}  # a colon: of another state directory
            if problems or orphans:
                self._known[family] = (recorded | orphans) - records.unreadable
            self.disagreements += [_rebuild_because(family, problem) for problem in problems]
            self.disagreements += [_of_nobody(family, owner) for owner in sorted(orphans)]

    def establish(self) -> None:
        """Rebuild the chains with the rules of every record."""
        for family, known in self._known.items():
            with waiting(f"Making the chains of {PREFIXES[family]}"):
                self._backend.rebuild_family(family, self._plan, known)


def _rebuild_because(family: int, problem: str) -> Disagreement:
    return Disagreement("rebuild", f"chains QUANTUM-... of {PREFIXES[family]}", "", problem)


def _of_nobody(family: int, owner: str) -> Disagreement:
    return Disagreement("delete", f"rules of {PREFIXES[family]}", owner, "nothing on record asks for them")


def agreements(state: State, records: Records) -> list[Agreement]:
    """Compare each backend that is, or was, in use."""
    plan = decide_all(records.in_force)
    found: list[Agreement] = [NftablesAgreement(state, records, plan)]
    if state.has_iptables():
        found.append(IptablesAgreement(state, records, plan))
    return found
