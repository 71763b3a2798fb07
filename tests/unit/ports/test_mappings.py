"""Parsing of a runtime's portMappings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.model.attachments import PortMapping
from cni_quantum_nat.model.errors import CniError
from cni_quantum_nat.ports.mappings import keep_live_changes, parse_port_mappings
from tests.unit.attachments import attachment

ANYTHING = (
    st.none() | st.booleans() | st.integers(-1, 70000) | st.text(max_size=8) | st.lists(st.integers(), max_size=2)
)
KEYS = st.sampled_from(
    [
        "hostPort",
        "HostPort",
        "containerPort",
        "CONTAINERPORT",
        "protocol",
        "Protocol",
        "hostIP",
        "allowFrom",
        "publishOn",
        "x",
    ]
)


def parse(*entries: Any) -> list[str]:
    return [str(mapping) for mapping in parse_port_mappings({"runtimeConfig": {"portMappings": list(entries)}})]


def entry(**more: Any) -> dict[str, Any]:
    return {"hostPort": 8080, "containerPort": 80, **more}


@given(st.lists(st.dictionaries(KEYS, ANYTHING, max_size=5) | ANYTHING, max_size=3))
def test_any_entry_is_parsed_or_refused_by_name(entries: list[Any]) -> None:
    try:
        mappings = parse_port_mappings({"runtimeConfig": {"portMappings": entries}})
    except CniError as error:
        assert error.code in (7, 100)
        assert "portMappings[" in error.message or "requested twice" in error.message
    else:
        named = [str(mapping) for mapping in mappings if mapping.host_port]
        assert len(named) == len(set(named))
        assert len(mappings) <= len(entries)
        assert all(1 <= m.container_port <= 65535 for m in mappings)
        assert all(m.host_port == 0 if m.allocated else 1 <= m.host_port <= 65535 for m in mappings)


NETWORK = ["192.0.2.0/24"]


@pytest.mark.parametrize("key", ["allowFrom", "publishOn"])
def test_ports_in_a_row_for_different_clients_are_different_ranges(key: str) -> None:
    value = {"allowFrom": NETWORK, "publishOn": ["eth1"]}[key]
    entries = [{"hostPort": port, "containerPort": port} for port in range(1000, 1040)]
    for some in entries[:20]:
        some[key] = value  # type: ignore[assignment]
    assert parse(*entries) == ["1000-1019->1000-1019/tcp", "1020-1039->1020-1039/tcp"]
    first, second = parse_port_mappings({"runtimeConfig": {"portMappings": entries}})
    assert [str(name) for names in first.filters for name in names] == value
    assert second.filters == ((), ())


def test_null_and_a_repeated_mapping_are_as_for_other_keys() -> None:
    assert parse(entry(allowFrom=None, publishOn=None), entry()) == ["8080->80/tcp"]
    assert parse(entry(allowFrom=NETWORK), entry(AllowFrom=NETWORK)) == ["8080->80/tcp"]
    with pytest.raises(CniError, match="requested twice"):
        parse(entry(allowFrom=NETWORK), entry())


@pytest.mark.parametrize(
    "configuration", [{}, {"runtimeConfig": None}, {"runtimeConfig": {}}, {"runtimeConfig": {"portMappings": None}}]
)
def test_a_configuration_without_mappings_has_none(configuration: dict[str, Any]) -> None:
    assert parse_port_mappings(configuration) == []


def test_the_case_of_keys_and_protocols_is_ignored() -> None:
    assert parse({"HostPort": 8080, "ContainerPort": 80, "Protocol": "UDP", "HostIP": ""}) == ["8080->80/udp"]


@pytest.mark.parametrize(("protocol", "read"), [({}, "tcp"), ({"protocol": ""}, "tcp"), ({"protocol": "SCTP"}, "sctp")])
def test_the_default_protocol_is_tcp(protocol: dict[str, str], read: str) -> None:
    assert parse(entry(**protocol)) == [f"8080->80/{read}"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hostPort": 0}, "hostPort is 0, not a number from 1"),
        ({"hostPort": None}, "hostPort is null, not a number from 1"),
        ({"hostPort": 65536}, "hostPort is 65536"),
        ({"hostPort": "8080"}, "hostPort is '8080'"),
        ({"hostPort": True}, "hostPort is True"),
        ({"containerPort": 0}, "containerPort is 0"),
        ({"containerPort": None}, "containerPort is None"),
        ({"protocol": "icmp"}, "protocol is 'icmp', not one of tcp, udp, sctp"),
        ({"hostIP": "::1"}, "is ::1, which the kernel never routes"),
        ({"hostIP": "::ffff:1.2.3.4"}, "an IPv4-mapped IPv6 address"),
        ({"hostIP": "example.org"}, "'example.org' is not an IP address"),
        ({"hostIP": 5}, "5 is not a string"),
    ],
)
def test_an_invalid_value_is_refused_with_its_key(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(CniError, match=r"portMappings\[1\]") as caught:
        parse(entry(hostPort=1), entry(**changed))
    assert caught.value.code == 7
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({}, {"containerPort": 81}),
        ({}, {"hostIP": "0.0.0.0"}),
        ({"hostIP": "::"}, {}),
        ({"hostIP": "10.0.0.1"}, {"hostIP": "10.0.0.1", "containerPort": 81}),
    ],
)
def test_the_same_host_port_twice_is_a_conflict(one: dict[str, str], two: dict[str, str]) -> None:
    with pytest.raises(CniError, match="8080/tcp is requested twice") as caught:
        parse(entry(**one), entry(**two))
    assert caught.value.code == 100


def test_a_mapping_without_a_host_port_requests_any_port() -> None:
    assert parse({"containerPort": 80}, {"containerPort": 81}) == ["0->80/tcp", "0->81/tcp"]


@pytest.mark.parametrize("same", [{}, {"hostIP": "10.0.0.1"}, {"hostIP": "fd00::1"}, {"hostPort": 1}])
def test_exact_duplicates_are_one(same: dict[str, Any]) -> None:
    assert len(parse(entry(**same), entry(**same), entry(**same, protocol="TCP"))) == 1
    assert parse({"containerPort": 80}, {"containerPort": 80}) == ["0->80/tcp"]


@pytest.mark.parametrize(
    ("one", "two"), [({}, {"protocol": "udp"}), ({}, {"hostIP": "10.0.0.1"}), ({"hostIP": "::"}, {"hostIP": "0.0.0.0"})]
)
def test_the_same_port_number_for_different_traffic_is_no_conflict(one: dict[str, str], two: dict[str, str]) -> None:
    assert len(parse(entry(**one), entry(**two))) == 2


def in_a_row(first: int, last: int, **more: Any) -> list[dict[str, Any]]:
    return [{"hostPort": port, "containerPort": port, **more} for port in range(first, last + 1)]


def test_a_range_is_one_mapping_whatever_follows_it() -> None:
    assert parse(*in_a_row(20000, 20099), entry()) == ["20000-20099->20000-20099/tcp", "8080->80/tcp"]
    assert parse(*in_a_row(65500, 65535), *in_a_row(1, 20)) == [
        "65500-65535->65500-65535/tcp",
        "1-20->1-20/tcp",
    ]
    assert parse(*in_a_row(20000, 20002)) == [f"{port}->{port}/tcp" for port in (20000, 20001, 20002)]


def test_keys_in_another_order_or_case_are_still_the_same_range() -> None:
    other = [{"Protocol": "TCP", "ContainerPort": port, "HostPort": port} for port in range(20050, 20100)]
    assert parse(*in_a_row(20000, 20049), *other) == ["20000-20099->20000-20099/tcp"]


@pytest.mark.parametrize("value", [20050.0, True, "20050", None])
@pytest.mark.parametrize("key", ["hostPort", "containerPort"])
def test_what_is_no_port_is_refused_within_a_range_too(key: str, value: object) -> None:
    entries = in_a_row(20000, 20099)
    entries[50][key] = value
    with pytest.raises(CniError, match=rf"portMappings\[50\]\.{key} is") as caught:
        parse(*entries)
    assert caught.value.code == 7


def test_true_is_no_port_2_after_a_range_that_ends_with_1() -> None:
    with pytest.raises(CniError, match=r"portMappings\[1\]"):
        parse({"hostPort": 1, "containerPort": 1}, {"hostPort": 2, "containerPort": True})


def test_a_refused_entry_after_a_range_is_named_by_its_number() -> None:
    with pytest.raises(CniError, match=r"portMappings\[100\]"):
        parse(*in_a_row(20000, 20099), entry(hostIP="::1"))


def test_a_range_and_a_single_port_in_it() -> None:
    assert parse(*in_a_row(20000, 20099), *in_a_row(20050, 20050)) == ["20000-20099->20000-20099/tcp"]
    with pytest.raises(CniError, match="20050/tcp is requested twice"):
        parse(*in_a_row(20000, 20099), {"hostPort": 20050, "containerPort": 80})
    with pytest.raises(CniError, match="20050/tcp is requested twice"):
        parse(*in_a_row(20000, 20099), *in_a_row(20050, 20050, hostIP="0.0.0.0"))


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=60))
def test_ranges_have_the_ports_that_single_entries_have(ports: list[tuple[int, bool]]) -> None:
    entries = [{"hostPort": port, "containerPort": port, "protocol": "udp" if udp else "tcp"} for port, udp in ports]
    found = parse_port_mappings({"runtimeConfig": {"portMappings": entries}})
    assert sorted(
        (port, one.protocol == "udp") for one in found for port in range(one.host_port, one.last_host_port + 1)
    ) == sorted(set(ports))


@pytest.mark.parametrize(
    ("asked", "published", "withdrawn", "then", "then_withdrawn"),
    [
        ([(8080, 80)], [(9000, 81)], [], ["8080->80", "9000->81"], []),
        ([(8080, 80)], [(8080, 81)], [], ["8080->80"], []),
        ([(8080, 80), (8081, 80)], [], [(8080, 80)], ["8081->80"], ["8080->80"]),
        ([(8080, 81)], [], [(8080, 80)], ["8080->81"], []),
        ([(8081, 80)], [], [(8080, 80)], ["8081->80"], []),
        ([], [(9000, 81)], [(8080, 80)], ["9000->81"], []),
    ],
)
def test_what_a_runtime_asks_for_and_an_operator_has_changed(
    asked: list[tuple[int, int]],
    published: list[tuple[int, int]],
    withdrawn: list[tuple[int, int]],
    then: list[str],
    then_withdrawn: list[str],
) -> None:
    former, wanted = attachment("net", "c", "eth0"), attachment("net", "c", "eth0")
    former.port_mappings = [PortMapping(None, 7000, "tcp", 70)]
    former.port_mappings += [PortMapping(None, host, "tcp", container, live=True) for host, container in published]
    former.withdrawn = [PortMapping(None, host, "tcp", container) for host, container in withdrawn]
    wanted.port_mappings = [PortMapping(None, host, "tcp", container) for host, container in asked]
    keep_live_changes(wanted, former)
    assert [str(mapping) for mapping in wanted.port_mappings] == [f"{ports}/tcp" for ports in then]
    assert [str(mapping) for mapping in wanted.withdrawn] == [f"{ports}/tcp" for ports in then_withdrawn]


def test_a_port_that_was_allocated_and_taken_back_stays_away_where_the_runtime_names_none() -> None:
    former, wanted = attachment("net", "c", "eth0"), attachment("net", "c", "eth0")
    former.withdrawn = [PortMapping(None, 32768, "tcp", 80, allocated=True)]
    wanted.port_mappings = [
        PortMapping(None, 0, "tcp", 80, allocated=True),
        PortMapping(None, 0, "tcp", 81, allocated=True),
    ]
    keep_live_changes(wanted, former)
    assert [mapping.container_port for mapping in wanted.port_mappings] == [81]
