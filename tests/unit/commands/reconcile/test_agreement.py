"""The changes from any damaged state of the kernel to the full plan of any records."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.backends.nftables.layout import BUCKET, BUCKETS, SETS, SHARED
from cni_quantum_nat.backends.nftables.provider import elements_of, planned_buckets
from cni_quantum_nat.backends.nftables.rules import Element, lead_of
from cni_quantum_nat.commands.reconcile.agreement import compare
from cni_quantum_nat.model.addresses import Address, Endpoint
from cni_quantum_nat.model.attachments import (
    EXCLUSIVE,
    SPREAD,
    Attachment,
    AttachmentId,
    Inbound,
    Outbound,
    PortMapping,
)
from cni_quantum_nat.nat.decision import decide_all

if TYPE_CHECKING:
    from cni_quantum_nat.backends.base import Plan
    from cni_quantum_nat.backends.nftables.rules import Fields

SHARED_PORTS = (1, 2)


@st.composite
def attachments(draw: st.DrawFn) -> list[Attachment]:
    """Draw attachments of a few containers and networks, often with the same ports and addresses."""
    identities = draw(st.sets(st.tuples(st.sampled_from("ab"), st.sampled_from("cdef")), max_size=6))
    return [
        Attachment(
            AttachmentId(network, container, "eth0"),
            backend="nftables",
            netns="",
            netns_identity=(0, 0),
            endpoints=[Endpoint.parse(f"10.0.0.{draw(st.integers(2, 6))}/24")],
            port_mappings=[
                PortMapping(None, port, "tcp", 80, sharing=SPREAD if port in SHARED_PORTS else EXCLUSIVE)
                for port in draw(st.sets(st.integers(1, 5), max_size=3))
            ],
            outbound=Outbound((4,)),
            inbound=Inbound(),
            established_timeout_s=3600,
            created_at=1.0,
            sequence=age,
        )
        for age, (network, container) in enumerate(sorted(identities))
    ]


def everything(plan: Plan) -> list[Element]:
    """Return the elements of the plan, with the buckets of shared ports."""
    buckets = [bucket for port, members in plan.shared.items() for bucket in planned_buckets(port, members, (), [])]
    return elements_of(plan) + [bucket for bucket in buckets if bucket]


@st.composite
def damaged(draw: st.DrawFn, plan: Plan) -> list[Element]:
    """Draw a damaged state: some elements of the plan are missing or have another owner, and some are foreign."""
    held = {element.identity: element for element in everything(plan)}
    for identity in draw(st.lists(st.sampled_from(sorted(held, key=str)), max_size=20)) if held else []:
        element = held.pop(identity, None)
        if element is not None and draw(st.booleans()):
            held[identity] = Element(element.set_name, element.key, element.data, "x/y/z")
    for last in draw(st.sets(st.integers(100, 105))):
        element = Element("masqueraded4", (Address.parse(f"10.0.0.{last}"),), (), draw(st.sampled_from(["", "n/o/p"])))
        held[element.identity] = element
    return list(held.values())


def after(plan: Plan, held: list[Element], unreadable: set[str]) -> list[Element]:
    """Apply the changes of `compare` as the kernel does: delete by key, then add exclusively."""
    change = compare(plan, held, unreadable)
    elements = {element.identity: element for element in held}
    for element in change.delete:
        del elements[element.identity]
    for element in change.add:
        assert element.identity not in elements
        elements[element.identity] = element
    return list(elements.values())


def buckets_of(elements: list[Element]) -> dict[Fields, Counter[str]]:
    """Return the number of buckets of each owner, by port."""
    counts: dict[Fields, Counter[str]] = {}
    for element in elements:
        if BUCKET in SETS[element.set_name].key:
            counts.setdefault(element.key[:-1], Counter())[element.owner] += 1
    return counts


@given(attachments(), st.data())
def test_afterwards_the_kernel_holds_exactly_the_plan(records: list[Attachment], data: st.DataObject) -> None:
    plan = decide_all(records)
    result = after(plan, data.draw(damaged(plan)), set())
    others = {element.identity: element for element in result if BUCKET not in SETS[element.set_name].key}
    placed = {element.identity: element for element in elements_of(plan)}
    assert others.keys() == placed.keys()
    assert all(element.is_same(placed[identity]) for identity, element in others.items())
    members: dict[object, set[str]] = {
        lead_of(port).key: {member.id.owner for member in shared} for port, shared in plan.shared.items()
    }
    assert buckets_of(result).keys() == members.keys()
    for port, counts in buckets_of(result).items():
        assert set(counts) == members[port]
        assert counts.total() == BUCKETS
        assert max(counts.values()) - min(counts.values()) <= 1


@given(attachments(), st.data())
def test_a_second_comparison_finds_no_differences(records: list[Attachment], data: st.DataObject) -> None:
    plan = decide_all(records)
    change = compare(plan, after(plan, data.draw(damaged(plan)), set()), set())
    assert (change.delete, change.add) == ([], [])


@given(attachments(), st.data())
def test_elements_of_an_unreadable_record_are_not_deleted(records: list[Attachment], data: st.DataObject) -> None:
    plan = decide_all(records)
    held = data.draw(damaged(plan))
    kept = {element.identity for element in held if element.owner in {"n/o/p", SHARED}}
    assert kept <= {element.identity for element in after(plan, held, {"n/o/p"})}
