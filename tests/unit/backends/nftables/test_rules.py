"""What an attachment needs, unit by unit, and how elements travel over netlink."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.backends.nftables import encoding
from cni_quantum_nat.backends.nftables.layout import (
    ADDRESS,
    BUCKET,
    FILTERS,
    GOTO,
    INTERFACE,
    PORT,
    PORTS,
    PROTOCOL,
    SETS,
    SUBNET,
    network_timeout_set,
    network_udp_timeout_set,
    prefix_part,
    subnets_set,
    timeout_set,
    udp_timeout_set,
)
from cni_quantum_nat.backends.nftables.rules import (
    Element,
    buckets_of,
    elements_of_port,
    filter_sets_of,
    lead_of,
    plan_rules,
    port_of,
)
from cni_quantum_nat.kernel import netlink
from cni_quantum_nat.model.addresses import Address, Endpoint, Subnet
from cni_quantum_nat.model.attachments import SPREAD, Attachment, AttachmentId, Inbound, Outbound, PortMapping
from cni_quantum_nat.model.units import HostPort, PortRange

if TYPE_CHECKING:
    from cni_quantum_nat.backends.nftables.rules import Field

# Besides those that every program knows.
NAMES = [
    *SETS,
    subnets_set(4, 24),
    subnets_set(6, 64),
    timeout_set(4, 60),
    timeout_set(6, 60),
    network_timeout_set(4, 60),
    udp_timeout_set(4, (30, 300)),
    udp_timeout_set(6, (30, 300)),
    network_udp_timeout_set(4, (30, 300)),
]
FIELDS: dict[tuple[str, int], st.SearchStrategy[Field]] = {
    (ADDRESS, 4): st.ip_addresses(v=4).map(lambda a: Address.parse(str(a))),
    (ADDRESS, 6): st.ip_addresses(v=6).map(lambda a: Address.parse(str(a))),
    (SUBNET, 4): st.builds(lambda a, n: Endpoint.parse(f"{a}/{n}").network, st.ip_addresses(v=4), st.integers(1, 32)),
    (SUBNET, 6): st.builds(lambda a, n: Endpoint.parse(f"{a}/{n}").network, st.ip_addresses(v=6), st.integers(1, 128)),
}
for _family in (4, 6):
    FIELDS |= {
        (PROTOCOL, _family): st.sampled_from(["tcp", "udp", "sctp"]),
        (PORT, _family): st.integers(0, 65535),
        (PORTS, _family): st.builds(PortRange, st.integers(0, 30000), st.integers(30001, 65535)),
        (INTERFACE, _family): st.from_regex(r"[a-z0-9.]{1,15}", fullmatch=True),
        (BUCKET, _family): st.integers(0, 63),
        (GOTO, _family): st.sampled_from(["publish", "spread"]),
    }


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_an_element_comes_out_of_netlink_as_it_went_in(name: str, data: st.DataObject) -> None:
    layout = SETS[name]
    key, value = (
        tuple(data.draw(FIELDS[kind, layout.family]) for kind in kinds) for kinds in (layout.key, layout.data)
    )
    owner = data.draw(st.text(st.characters(codec="ascii", min_codepoint=32), max_size=127))
    ends: list[bytes] = []
    (read,) = encoding.elements_in(encoding.addition(Element(name, key, value, owner), owner), name, ends)
    if layout.has_intervals and len(layout.key) == 1:
        encoding.join_intervals([read], ends)
    assert (read.key, read.data, read.owner) == (key, value, owner)


@given(st.sets(st.tuples(st.integers(0, 15), st.integers(24, 30)), max_size=8))
def test_listed_intervals_are_subnets_again(parts: set[tuple[int, int]]) -> None:
    """The kernel lists where each begins and where each ends, in no order that says which belong together."""
    third = dict(parts)  # one subnet in each /24: they do not overlap
    subnets = [Subnet(Address.parse(f"10.255.{255 - number}.0"), length) for number, length in third.items()]
    added = b"".join(encoding.addition(Element("network_snat4", (s,), (s.first,), "owner"), "owner") for s in subnets)
    ends: list[bytes] = []
    read = list(encoding.elements_in(added, "network_snat4", ends))
    encoding.join_intervals(read, sorted(ends))
    assert [element.key for element in read] == [(subnet,) for subnet in subnets]


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40)), max_size=6))
def test_attributes_come_out_as_they_went_in(parts: list[tuple[int, bytes]]) -> None:
    framed = b"".join(netlink.attribute(kind, payload) for kind, payload in parts)
    assert list(netlink.attributes(framed)) == parts


SOURCES = st.sampled_from([(), tuple(map(Subnet.parse, ("10.0.0.0/24", "192.0.2.7/32", "2001:db8::/32")))])
INTERFACES = st.sampled_from([(), ("lo",), ("eth1", "lo")])


@st.composite
def attachments(draw: st.DrawFn) -> Attachment:
    """Draw an attachment that may want anything."""
    families = draw(st.lists(st.sampled_from([4, 6]), min_size=1, unique=True))
    texts = {4: ["10.0.0.2/24", "10.0.0.3/24"], 6: ["fd00::2/64", "fd00::3/128"]}
    hosts = st.sampled_from([None, "0.0.0.0", "127.0.0.1", "192.0.2.1", "::", "::1", "2001:db8::1"])
    mappings = [
        PortMapping(Address.parse(ip) if ip else None, port, protocol, 80, sharing=draw(st.sampled_from(["", SPREAD])))
        for ip, port, protocol in draw(
            st.lists(
                st.tuples(hosts, st.integers(1, 3), st.sampled_from(["tcp", "udp"])),
                max_size=4,
                unique_by=lambda m: m[1:],
            )
        )
    ]
    for mapping in mappings:
        mapping.allow_from, mapping.publish_on = draw(SOURCES), draw(INTERFACES)
    mappings += [
        PortMapping(Address.parse(ip) if ip else None, 100, protocol, 100, size=20, allow_from=draw(SOURCES))
        for ip, protocol in draw(
            st.lists(st.tuples(hosts, st.sampled_from(["tcp", "udp"])), max_size=2, unique_by=lambda m: m[1])
        )
    ]
    masquerade = tuple(draw(st.lists(st.sampled_from(families), unique=True)))
    fixed = {4: Address.parse("192.0.2.7"), 6: Address.parse("2001:db8::7")}
    made = Attachment(
        AttachmentId("net", "c", "eth0"),
        backend="nftables",
        netns="",
        netns_identity=(0, 0),
        endpoints=[Endpoint.parse(text) for f in families for text in texts[f][: draw(st.integers(1, 2))]],
        port_mappings=mappings,
        outbound=Outbound(
            masquerade,
            {f: draw(st.sampled_from([(), ("eth0",), ("eth0", "eth1")])) for f in masquerade},
            {f: fixed[f] for f in masquerade if draw(st.booleans())},
            tuple(draw(st.lists(st.sampled_from([Subnet.parse("10.0.0.0/8"), Subnet.parse("fd00::/8")]), unique=True))),
        ),
        inbound=Inbound(
            snat=draw(st.booleans()),
            masquerade_all=draw(st.booleans()),
            ipv6_localhost=draw(st.booleans()),
            isolate=draw(st.booleans()),
            conditions={4: ("ip saddr 192.0.2.0/24",)} if draw(st.booleans()) else {},
            allow_from=draw(SOURCES),
            publish_on=draw(INTERFACES),
        ),
        established_timeout_s=draw(st.sampled_from([3600, 60])),
        udp_timeouts_s=draw(st.sampled_from([None, (30, 300)])),
        created_at=1.0,
    )
    for endpoint in made.endpoints:
        endpoint.host_interface = "cni0"
    return made


@given(attachments())
def test_each_unit_has_its_lead_and_no_two_elements_have_one_key(wanted: Attachment) -> None:
    plan = plan_rules(wanted)
    assert len({element.identity for element in plan}) == len(plan)
    for unit in (*wanted.address_units, *wanted.host_ports):
        of_unit = plan_rules(wanted, [unit])
        assert lead_of(unit).identity in {element.identity for element in of_unit}
        if isinstance(unit, HostPort):
            of_filters = [element for element in of_unit if SETS[element.set_name].part in FILTERS.values()]
            assert {element.set_name for element in of_filters} <= set(filter_sets_of(unit))
            assert {port_of(element) for element in of_filters} <= {port_of(lead_of(unit))}
            rest = {element.identity for element in of_unit} - {element.identity for element in of_filters}
            assert rest <= {e.identity for e in elements_of_port(unit)}
            assert port_of(lead_of(unit)) in (unit, _by_alias(unit))
            if unit.size == 1:  # no range is shared
                assert all(port_of(bucket) in (unit, _by_alias(unit)) for bucket in buckets_of(unit))
    units = [*wanted.address_units, *wanted.host_ports]
    assert [str(e) for unit in units for e in plan_rules(wanted, [unit])] == [str(e) for e in plan]


def _by_alias(port: HostPort) -> HostPort:
    alias = Address.parse("fd71:6e61:7400::1")
    return HostPort(port.family, port.protocol, port.port, alias if port.address is not None else None, port.size)


@given(attachments())
def test_no_unit_has_an_element_of_another(wanted: Attachment) -> None:
    """A port that another one has, or an address, is released whole: nothing of it may be kept by what is elsewhere."""
    seen: dict[object, object] = {}
    for unit in (*wanted.address_units, *wanted.host_ports):
        for element in plan_rules(wanted, [unit]):
            assert seen.setdefault(element.identity, unit) == unit


def test_a_networks_elements_are_of_its_cidr() -> None:
    network = Attachment(
        AttachmentId("lan", "lan", "lan"),
        backend="nftables",
        netns="",
        netns_identity=(0, 0),
        endpoints=[Endpoint.parse("10.7.0.0/16")],
        port_mappings=[],
        outbound=Outbound((4,), {4: ("eth0",)}, {4: Address.parse("192.0.2.7")}, (Subnet.parse("10.0.0.0/8"),)),
        inbound=Inbound(),
        established_timeout_s=3600,
        created_at=1.0,
        is_network=True,
    )
    assert [str(element) for element in plan_rules(network)] == [
        "networks4 { 10.7.0.0/16 }",
        "subnets4_16 { 10.7.0.0 . 10.7.0.0 }",
        "network_fixed_via4 { eth0 . 10.7.0.0/16 }",
        "network_snat4 { 10.7.0.0/16 : 192.0.2.7 }",
        "no_masquerade4 { 10.7.0.0/16 . 10.0.0.0/8 }",
    ]
    assert SETS["subnets4_16"].part == prefix_part(4, 16)
