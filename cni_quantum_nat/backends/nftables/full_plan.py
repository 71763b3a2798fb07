"""What all attachments on record ask for together, where some want the same. No I/O."""

from __future__ import annotations

from .distribution import deal
from .layout import SLOTS
from .rules import plan_rules, plan_shares

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...model.attachments import Attachment
    from .rules import Element, Fields, Share

    Identity = tuple[str, Fields]


class JointPlan:
    """The elements of all attachments, at most one for a key, as the kernel would hold them.

    An address belongs to whoever was given it last. A host port stays with the container that holds it when
    that container wants it on another network too, and else goes to the newer attachment, which could only
    be added because the older one's network namespace was gone.

    placed: by what there can be only one of; without the slots of shared ports.
    alternatives: what the same container would have in its place by another network.
    shares: by shared port, one of each container, oldest first.
    """

    __slots__ = ("alternatives", "placed", "shares")

    def __init__(self, attachments: Iterable[Attachment]) -> None:
        self.placed: dict[Identity, Element] = {}
        self.alternatives: dict[Identity, list[Element]] = {}
        members: dict[Identity, dict[str, Share]] = {}
        containers: dict[Identity, str] = {}
        for attachment in sorted(attachments, key=_age):
            container = attachment.id.container_id
            for element in plan_rules(attachment):
                identity = element.identity
                if element.is_host_port and containers.get(identity) == container:
                    self.alternatives.setdefault(identity, []).append(element)
                else:
                    self.placed[identity] = element
                    containers[identity] = container
                    self.alternatives.pop(identity, None)
            for share in plan_shares(attachment):
                members.setdefault(share.identity, {}).setdefault(container, share)
        self.shares = {port: list(of_container.values()) for port, of_container in members.items()}

    @property
    def elements(self) -> list[Element]:
        """Everything, with the slots of shared ports dealt anew."""
        return [*self.placed.values(), *(slot for shares in self.shares.values() for slot in _deal(shares))]


def plan_together(attachments: Iterable[Attachment]) -> list[Element]:
    """Return the elements of all attachments."""
    return JointPlan(attachments).elements


def _deal(members: list[Share]) -> list[Element]:
    """Deal the slots of one port to those who share it."""
    by_owner = {share.owner: share for share in members[:SLOTS]}
    return [by_owner[owner].slot(number) for number, owner in enumerate(deal([None] * SLOTS, list(by_owner)))]


def _age(attachment: Attachment) -> float:
    return attachment.created_at
