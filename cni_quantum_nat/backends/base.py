"""The contract between the NAT Manager and a Backend Provider. No I/O.

The NAT Manager decides which attachment owns which units (nat/decision.py). A backend turns that into rules, in one transaction
if it can. The backends are nftables/provider.py and iptables/provider.py.
A pod's start waits for this module.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from ..model.addresses import Address
    from ..model.attachments import Attachment
    from ..model.units import HostPort, Unit


MOST_MEMBERS = 64  # of a shared port


class Installed:
    """An attachment, and those of its units that it gets. in_addition: it keeps the units that it has already."""

    __slots__ = ("attachment", "in_addition", "units")

    def __init__(self, attachment: Attachment, units: Iterable[Unit], *, in_addition: bool = False) -> None:
        self.attachment = attachment
        self.units = list(units)
        self.in_addition = in_addition


class Change:
    """What a backend should do, in one transaction.

    install: what exists afterwards. The units are taken as a whole from whoever had them.
    remove: attachments, of this or an earlier generation; only what is installed remains of them.
    orphans: owners that lose all their rules, which are found by listing.
    members: by shared port, the owners that share it afterwards; present members keep as many buckets as possible.
    is_new: expect nothing in the way, and raise AlreadyThere if something is.
    """

    __slots__ = ("install", "is_new", "members", "orphans", "remove")

    def __init__(
        self,
        *,
        install: Iterable[Installed] = (),
        remove: Iterable[Attachment] = (),
        orphans: Collection[str] = (),
        members: dict[HostPort, list[str]] | None = None,
        is_new: bool = False,
    ) -> None:
        self.install = list(install)
        self.remove = list(remove)
        self.orphans = orphans
        self.members = members or {}
        self.is_new = is_new


class Applied:
    """The result of a change.

    undo: reverts it. addresses: those of removed attachments that may still have connections, and that no other attachment has by now.
    """

    __slots__ = ("addresses", "undo")

    def __init__(self, undo: Callable[[], None], addresses: list[Address]) -> None:
        self.undo = undo
        self.addresses = addresses


class RulesDamaged(Exception):
    """The rules as a whole are missing, changed, or from an older version, and have to be rebuilt from the records."""


class Plan:
    """The full plan: what all attachments have.

    shared: by shared port, the attachments that share it. superseded: attachments that lost everything, because a newer one has their
    address, or another container has their host port.
    """

    __slots__ = ("installed", "shared", "superseded")

    def __init__(self) -> None:
        self.installed: list[Installed] = []
        self.shared: dict[HostPort, list[Attachment]] = {}
        self.superseded: list[Attachment] = []

    def of_backend(self, name: str) -> Plan:
        """Return the part for one backend."""
        part = Plan()
        part.installed = [installed for installed in self.installed if installed.attachment.backend == name]
        part.shared = {port: members for port, members in self.shared.items() if members[0].backend == name}
        return part


def is_of_network(owner: str, network: str) -> bool:
    """Whether an owner is, or may be, an attachment of this network: a name that was too long for a comment is abbreviated.

    Not one of another state directory, whose owners have a colon.
    """
    kept, abbreviated, _ = owner.partition("~")
    if ":" in owner:
        return False
    return owner.startswith(f"{network}/") or bool(abbreviated and f"{network}/".startswith(kept))


class Backend:
    """Rules in the kernel. Every method is called under the lock of the state directory.

    arbitrates: whether a new change can be tried without checking first what is in the way.
    """

    name: str
    arbitrates: bool

    def holders(self, units: Collection[Unit]) -> tuple[dict[Unit, list[str]], set[Unit]]:
        """Return the owners of the units in the kernel, as rules name them, and which units are shared. Free units are left out.

        A host port or range that overlaps with one of the units is returned as it is in the kernel.
        """
        raise NotImplementedError

    def require_intact(self, families: Collection[int]) -> None:
        """Check the rules as a whole, as far as they concern these families. RulesDamaged if they have to be rebuilt."""
        raise NotImplementedError

    def apply(self, change: Change) -> Applied:
        """Make the change.

        Raises: RulesDamaged; AlreadyThere, if the change is new; KernelRefused. In each case nothing has changed.
        """
        raise NotImplementedError

    def differences(self, installed: Installed) -> list[str]:
        """Describe how the kernel's rules for the attachment differ from what they should be."""
        raise NotImplementedError

    def rebuild(self, plan: Plan, known: Collection[str], expected: Iterable[Installed] = ()) -> None:
        """Rebuild all rules according to the plan, ready for what will be installed next (`expected`).

        An attachment that the kernel refuses is left out with a warning. Rules of owners that are not in `known` stay: they may be on
        record in another state directory, or their record cannot be read.
        """
        raise NotImplementedError

    def owners(self, network: str) -> set[str]:
        """List the owners of a network that have rules. The cost grows with the number of containers."""
        raise NotImplementedError

    def require(self) -> None:
        """Check, without changing anything, that the kernel accepts our rules. CniError(50) if it does not."""
        raise NotImplementedError

    def close(self) -> None:
        """Close sockets."""
