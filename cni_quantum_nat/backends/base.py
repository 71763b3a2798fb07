"""The contract between the NAT Manager and a Backend Provider. No I/O.

The NAT Manager decides who holds what (nat/decision.py), in attachments and units; a backend makes rules of that, in one transaction
where it can. There are two: nftables/provider.py and iptables/provider.py.
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
    """An attachment, and of its units those that it holds. in_addition: to others that it has."""

    __slots__ = ("attachment", "in_addition", "units")

    def __init__(self, attachment: Attachment, units: Iterable[Unit], *, in_addition: bool = False) -> None:
        self.attachment = attachment
        self.units = list(units)
        self.in_addition = in_addition


class Change:
    """What a backend is to do, in one transaction.

    install: what is to be there afterwards. The units are taken as a whole, whoever had them.
    remove: attachments, of this or an earlier generation, of which nothing stays but what is installed.
    orphans: owners of which all rules go, found by listing.
    members: by shared port, the owners who share it afterwards; those with a part keep as much of it as they can.
    is_new: nothing is expected to be in the way, and AlreadyThere is raised when something is.
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
    """What has become of a change.

    undo: takes it back. addresses: those of removed attachments that connections may be left of, and that nobody else has by now.
    """

    __slots__ = ("addresses", "undo")

    def __init__(self, undo: Callable[[], None], addresses: list[Address]) -> None:
        self.undo = undo
        self.addresses = addresses


class RulesDamaged(Exception):
    """The rules as a whole are missing, altered, or of an older version: they have to be made anew from the records."""


class Plan:
    """What all attachments hold together.

    shared: by shared port, the attachments that share it. superseded: those who lost an address, or a host port to another container,
    to a newer attachment, and with it everything.
    """

    __slots__ = ("installed", "shared", "superseded")

    def __init__(self) -> None:
        self.installed: list[Installed] = []
        self.shared: dict[HostPort, list[Attachment]] = {}
        self.superseded: list[Attachment] = []

    def of_backend(self, name: str) -> Plan:
        """Return the part of it that a backend makes."""
        part = Plan()
        part.installed = [installed for installed in self.installed if installed.attachment.backend == name]
        part.shared = {port: members for port, members in self.shared.items() if members[0].backend == name}
        return part


def is_of_network(owner: str, network: str) -> bool:
    """Whether an owner is, or may be, an attachment of this network: a name that was too long for a comment is abbreviated."""
    kept, abbreviated, _ = owner.partition("~")
    return owner.startswith(f"{network}/") or bool(abbreviated and f"{network}/".startswith(kept))


class Backend:
    """Rules in the kernel. All of it is called under the lock of the state directory.

    arbitrates: whether a change that is new can be tried without a look at what is in the way.
    """

    name: str
    arbitrates: bool

    def holders(self, units: Collection[Unit]) -> tuple[dict[Unit, list[str]], set[Unit]]:
        """Return who has the units in the kernel, as rules name them, and which units are shared. What is free is left out."""
        raise NotImplementedError

    def apply(self, change: Change) -> Applied:
        """Make the change.

        Raises: RulesDamaged; AlreadyThere, for a change that is new; KernelRefused. Nothing has changed then.
        """
        raise NotImplementedError

    def differences(self, installed: Installed) -> list[str]:
        """Describe how the kernel's rules for the attachment differ from what they should be."""
        raise NotImplementedError

    def rebuild(self, plan: Plan, known: Collection[str], expected: Iterable[Installed] = ()) -> None:
        """Make all rules anew, as the plan says, and ready for what is expected to be installed next.

        An attachment that the kernel refuses is left out with a warning. Rules of owners who are not in `known` stay: another state
        directory may know them, or their record cannot be read.
        """
        raise NotImplementedError

    def owners(self, network: str) -> set[str]:
        """List who of a network has rules. Grows with the number of containers."""
        raise NotImplementedError

    def require(self) -> None:
        """Check, without a change, that the kernel takes our rules; CniError(50) when not."""
        raise NotImplementedError

    def close(self) -> None:
        """Close what was opened."""
