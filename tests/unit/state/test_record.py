"""Records of every format are read, and none of them can say what rules cannot be made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.model.attachments import NOWHERE, AttachmentId, PortMapping
from cni_quantum_nat.model.errors import CniError
from cni_quantum_nat.state.record import FORMAT, read_record, write_record
from tests.unit.attachments import attachment

if TYPE_CHECKING:
    from cni_quantum_nat.model.attachments import Attachment

IDENTITY = AttachmentId("net", "c", "eth0")
# As 1.0.0 wrote it, with a mapping for a family that the container lacks.
OF_1_0_0 = json.loads("""{
"format": 2, "bootId": "b", "network": "net", "containerId": "c", "interface": "eth0", "backend": "nftables",
"netns": "/run/netns/c", "netnsIdentity": [4, 4026532281], "createdAt": 1700000000.5,
"endpoints": [{"address": "10.88.0.2/16", "hostInterface": "cni0"}],
"portMappings": [
 {"hostIP": "", "hostPort": 8080, "protocol": "tcp", "containerPort": 80, "allocated": false, "sharing": ""},
 {"hostIP": "::", "hostPort": 0, "protocol": "tcp", "containerPort": 81, "allocated": true, "sharing": ""}],
"outbound": {"masquerade": [4], "externalInterfaces": {"4": []}, "snatAddresses": {}},
"inbound": {"snat": true, "masqueradeAll": false, "ipv6Localhost": false, "isolate": false, "conditions": {},
 "markBit": null, "setMarkChain": ""}, "establishedTimeoutS": 3600, "isNetwork": false}""")


def written(**changed: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(write_record(attachment("net", "c", "eth0"), "boot")))
    return {**content, **changed}


def read(content: object) -> Attachment:
    return read_record(content, IDENTITY, "/state/c")


def test_a_record_is_read_as_it_was_written() -> None:
    former = attachment("net", "c", "eth0", 81)
    wanted = attachment("net", "c", "eth0")
    wanted.sequence, wanted.had_earlier, wanted.host_netns, wanted.netns_directory = 7, True, (4, 9), (24, 2)
    wanted.replaces = [former]
    found = read(json.loads(json.dumps(write_record(wanted, "boot"))))
    assert found.as_record() == wanted.as_record()
    assert [generation.as_record() for generation in found.replaces] == [former.as_record()]
    assert {generation.boot_id for generation in found.generations} == {"boot"}


def test_live_changes_are_read_as_they_were_written_and_leave_no_trace_once_undone() -> None:
    wanted = attachment("net", "c", "eth0")
    plain = json.dumps(write_record(wanted, "boot"))
    asked = wanted.port_mappings[0]
    wanted.port_mappings = [PortMapping(None, 8080, "udp", 53, live=True, created_at=7.5)]
    wanted.withdrawn = [asked]
    found = read(json.loads(json.dumps(write_record(wanted, "boot"))))
    assert found.as_record() == wanted.as_record()
    assert [mapping.live for mapping in found.port_mappings] == [True]
    assert found.has_live_changes
    found.port_mappings, found.withdrawn = [asked], []
    assert not found.has_live_changes
    assert json.dumps(write_record(found, "boot")) == plain, (
        "which is what a version without live ports writes and reads"
    )


def test_1_0_0_leaves_a_record_with_live_ports_to_whoever_wrote_it() -> None:
    """It reads format 2, and refuses newer ones."""
    assert written()["format"] == FORMAT == 3


def test_a_record_of_1_0_0_is_upgraded_and_what_it_does_not_say_is_taken_for_the_worst() -> None:
    found = read({**OF_1_0_0, "replaces": [{k: v for k, v in OF_1_0_0.items() if k not in {"format", "bootId"}}]})
    assert str(found.port_mappings[0]) == "8080->80/tcp"
    assert len(found.port_mappings) == 1, "a mapping that never got a port is none"
    assert (found.sequence, found.had_earlier) == (0, True)
    assert (found.host_netns, found.netns_directory) == (NOWHERE, NOWHERE)
    assert found.outbound.no_masquerade == ()
    assert found.boot_id == "b"
    assert len(found.replaces) == 1


def test_a_record_without_a_format_is_of_the_first() -> None:
    first = {k: v for k, v in OF_1_0_0.items() if k not in {"format", "bootId"}}
    first["inbound"] = {k: v for k, v in first["inbound"].items() if k != "isolate"}
    found = read(first)
    assert (found.boot_id, found.inbound.isolate) == ("", False)


def test_a_newer_format_is_left_to_whoever_wrote_it() -> None:
    with pytest.raises(CniError, match=f"format {FORMAT + 1}") as caught:
        read(written(format=FORMAT + 1))
    assert caught.value.code == 108


@pytest.mark.parametrize(
    "changed",
    [
        {"format": 0},
        {"format": "3"},
        {"backend": "ebtables"},
        {"netns": 5},
        {"netnsIdentity": [1]},
        {"netnsIdentity": [1, -1]},
        {"hostNetns": [True, 1]},
        {"sequence": -1},
        {"sequence": "1"},
        {"hadEarlier": 1},
        {"waitsFor": 1},
        {"waitsFor": [1]},
        {"createdAt": "now"},
        {"establishedTimeoutS": 0},
        {"udpTimeoutsS": [30]},
        {"inbound": {**OF_1_0_0["inbound"], "allowFrom": ["192.0.2.0"]}},
        {"inbound": {**OF_1_0_0["inbound"], "publishOn": ['e"']}},
        {"portMappings": [{**OF_1_0_0["portMappings"][0], "allowFrom": ["x"]}]},
        {"portMappings": [{**OF_1_0_0["portMappings"][0], "publishOn": [""]}]},
        {"udpTimeoutsS": [30, 0]},
        {"udpTimeoutsS": ["30", "60"]},
        {"isNetwork": 0},
        {"containerId": "another"},
        {"endpoints": [{"address": "10.0.0.2/24", "hostInterface": 'e"'}]},
        {"endpoints": [{"address": "10.0.0.2/24", "hostInterface": "e" * 16}]},
        {"portMappings": [{**OF_1_0_0["portMappings"][0], "hostPort": 0}]},
        {"portMappings": [{**OF_1_0_0["portMappings"][0], "protocol": "tcp }"}]},
        {"portMappings": [{**OF_1_0_0["portMappings"][0], "containerPort": 65536}]},
        {"portMappings": [{**OF_1_0_0["portMappings"][0], "sharing": "x"}]},
        {"portMappings": [{**OF_1_0_0["portMappings"][0], "live": 1}]},
        {"withdrawn": [{**OF_1_0_0["portMappings"][0], "hostPort": 0}]},
        {"withdrawn": [1]},
        {"outbound": {**OF_1_0_0["outbound"], "noMasquerade": ["10.0.0.0"]}},
        {"outbound": {**OF_1_0_0["outbound"], "noMasquerade": [], "masquerade": [5]}},
        {"inbound": {**OF_1_0_0["inbound"], "markBit": 32}},
        {"inbound": {**OF_1_0_0["inbound"], "conditions": {"4": [5]}}},
    ],
)
def test_a_value_that_no_rule_can_be_made_of_is_damage(changed: dict[str, Any]) -> None:
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        read(written(**changed))


@given(
    st.sampled_from(sorted(written())),
    st.none() | st.integers() | st.text(max_size=4) | st.lists(st.integers(), max_size=2),
)
def test_any_value_of_any_key_is_read_or_damage(key: str, value: object) -> None:
    try:
        found = read(written(**{key: value}))
    except CniError as error:
        assert error.code == 108
    except (AttributeError, KeyError, TypeError, ValueError):
        return
    else:
        assert found.id == IDENTITY
