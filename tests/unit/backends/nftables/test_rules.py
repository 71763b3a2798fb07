"""Which elements hold when several attachments want one key, and how elements travel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.backends.nftables import encoding
from cni_quantum_nat.backends.nftables.full_plan import plan_together
from cni_quantum_nat.backends.nftables.layout import (
    ADDRESS4,
    ADDRESS6,
    GOTO,
    INTERFACE,
    JUMP,
    PORT,
    PROTOCOL,
    SETS,
    SLOT,
)
from cni_quantum_nat.backends.nftables.rules import Element, plan_rules
from cni_quantum_nat.kernel import netlink
from cni_quantum_nat.model.addresses import Address, Endpoint, Subnet
from cni_quantum_nat.model.attachments import Attachment, AttachmentId, Inbound, Outbound, PortMapping

if TYPE_CHECKING:
    from cni_quantum_nat.backends.nftables.rules import Field


def attachment(container: str, address: str, age: float, port: int = 8080, network: str = "net") -> Attachment:
    return Attachment(
        AttachmentId(network, container, "eth0"),
        backend="nftables",
        netns="",
        netns_identity=(0, 0),
        endpoints=[Endpoint.parse(address)],
        port_mappings=[PortMapping(None, port, "tcp", 80)],
        outbound=Outbound((4, 6)),
        inbound=Inbound(),
        established_timeout_s=3600,
        created_at=age,
    )


def owners(*attachments: Attachment) -> dict[str, str]:
    return {str(element).split(" : ")[0]: element.owner for element in plan_together(attachments)}


def test_an_address_belongs_to_whoever_was_given_it_last() -> None:
    old = attachment("old", "10.0.0.2/24", 1, port=1)
    new = attachment("new", "10.0.0.2/24", 2, port=2)
    for order in ((old, new), (new, old)):
        assert owners(*order)["masqueraded4 { 10.0.0.2 }"] == "net/new/eth0"


def test_a_host_port_stays_with_the_first_network_of_its_container() -> None:
    first = attachment("c", "10.0.0.2/24", 1)
    second = attachment("c", "10.1.0.2/24", 2, network="other")
    assert owners(second, first)["host_ports4 { tcp . 8080 }"] == "net/c/eth0"


def test_a_host_port_goes_to_the_newer_container() -> None:
    dead = attachment("dead", "10.0.0.2/24", 1)
    newcomer = attachment("newcomer", "10.0.0.3/24", 2)
    assert owners(newcomer, dead)["host_ports4 { tcp . 8080 }"] == "net/newcomer/eth0"


FIELDS: dict[str, st.SearchStrategy[Field]] = {
    ADDRESS4: st.ip_addresses(v=4).map(lambda a: Address.parse(str(a))),
    ADDRESS6: st.ip_addresses(v=6).map(lambda a: Address.parse(str(a))),
    PROTOCOL: st.sampled_from(["tcp", "udp", "sctp"]),
    PORT: st.integers(0, 65535),
    INTERFACE: st.from_regex(r"[a-z0-9.]{1,15}", fullmatch=True),
    SLOT: st.integers(0, 63),
    JUMP: st.sampled_from(["subnet4_24", "subnet6_64"]),
    GOTO: st.sampled_from(["publish", "masqueraded"]),
}


@pytest.mark.parametrize("name", SETS)
@given(data=st.data())
def test_an_element_comes_out_of_netlink_as_it_went_in(name: str, data: st.DataObject) -> None:
    layout = SETS[name]
    key, value = (tuple(data.draw(FIELDS[kind]) for kind in kinds) for kinds in (layout.key, layout.data))
    element = Element(
        name, key, value, data.draw(st.text(st.characters(codec="ascii", min_codepoint=32), max_size=127))
    )
    (read,) = encoding.elements_in(encoding.put_in(element), name)
    assert (read.key, read.data, read.owner) == (key, value, element.owner)


@given(st.sets(st.tuples(st.integers(0, 15), st.integers(24, 30)), max_size=8))
def test_listed_intervals_are_subnets_again(parts: set[tuple[int, int]]) -> None:
    """The kernel lists where each begins and where each ends, in no order that says which belong together."""
    third = dict(parts)  # one subnet in each /24: they do not overlap
    subnets = [Subnet(Address.parse(f"10.255.{255 - number}.0"), length) for number, length in third.items()]
    added = b"".join(encoding.put_in(Element("cidr_snat4", (s,), (s.first,), "owner")) for s in subnets)
    ends: list[bytes] = []
    read = list(encoding.elements_in(added, "cidr_snat4", ends))
    encoding.join_intervals(read, sorted(ends))
    assert [element.key for element in read] == [(subnet,) for subnet in subnets]


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40)), max_size=6))
def test_attributes_come_out_as_they_went_in(parts: list[tuple[int, bytes]]) -> None:
    framed = b"".join(netlink.attribute(kind, payload) for kind, payload in parts)
    assert list(netlink.attributes(framed)) == parts


def test_no_two_elements_of_a_plan_have_one_key() -> None:
    plan = plan_rules(attachment("c", "10.0.0.2/24", 1))
    assert len({element.identity for element in plan}) == len(plan)
