"""The CNI protocol: environment, versions and results as in the specification."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from cni_quantum_nat.cni import protocol
from cni_quantum_nat.model.errors import CniError

RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "cni0"},
        {"name": "eth0", "sandbox": "/run/netns/c"},
        {"name": "eth1", "sandbox": "/run/netns/c"},
    ],
    "ips": [
        {"address": "10.0.0.2/24", "interface": 1, "gateway": "10.0.0.1"},
        {"address": "fd00::2/64", "interface": 1},
    ],
    "dns": {},
    "unknown": {"kept": [1.5, None]},
}
ENVIRONMENT = {"CNI_CONTAINERID": "abc", "CNI_NETNS": "/run/netns/c", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a function that reads the environment of a call."""

    def read(command: str, **changed: str) -> protocol.Environment:
        variables = {**ENVIRONMENT, **changed, "CNI_COMMAND": command}
        monkeypatch.setattr("posix.environ", {os.fsencode(k): os.fsencode(v) for k, v in variables.items()})
        return protocol.read_environment()

    return read


def test_an_unknown_command_is_an_environment_error(call: Any) -> None:
    with pytest.raises(CniError, match="CNI_COMMAND is 'add', not one of ADD") as caught:
        call("add")
    assert caught.value.code == 4


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("ADD", "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
        ("CHECK", "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
        ("DEL", "CNI_CONTAINERID, CNI_IFNAME"),
        ("GC", "CNI_PATH"),
        ("STATUS", "CNI_PATH"),
    ],
)
def test_all_missing_variables_are_reported_together(call: Any, command: str, missing: str) -> None:
    with pytest.raises(CniError, match=f"{command} needs {missing} in the environment") as caught:
        call(command, CNI_CONTAINERID="", CNI_NETNS="", CNI_IFNAME="", CNI_PATH="")
    assert caught.value.code == 4


@pytest.mark.parametrize("container_id", ["../x", "a/b", "-a", ".", "é", "a b", "a" * 201])
def test_a_container_id_that_could_escape_the_directory_is_refused(call: Any, container_id: str) -> None:
    with pytest.raises(CniError, match="CNI_CONTAINERID"):
        call("DEL", CNI_CONTAINERID=container_id)


@pytest.mark.parametrize("name", [".", "..", "a/b", "a:b", "a b", "a" * 16, "é" * 8])
def test_an_interface_name_that_linux_refuses_is_refused(call: Any, name: str) -> None:
    with pytest.raises(CniError, match="CNI_IFNAME"):
        call("DEL", CNI_IFNAME=name)


@pytest.mark.parametrize(
    ("command", "version"),
    [("ADD", "2.0.0"), ("ADD", "0.0.1"), ("CHECK", "0.3.1"), ("CHECK", None), ("GC", "1.0.0"), ("STATUS", "1.0.0")],
)
def test_a_version_without_the_command_is_refused(command: str, version: str | None) -> None:
    with pytest.raises(CniError, match=r"cniVersion") as caught:
        protocol.check_version({"cniVersion": version}, command)
    assert caught.value.code == 1


@pytest.mark.parametrize("version", [None, "", "0.1.0", "0.2.0"])
def test_a_list_of_the_first_versions_is_served(version: str | None) -> None:
    protocol.check_version({"cniVersion": version}, "ADD")
    protocol.check_version({"cniVersion": version}, "DEL")
    assert protocol.version_of(json.dumps({"cniVersion": version}).encode()) == (version or "0.1.0")


@pytest.mark.parametrize("version", ["2.0.0", 5, "1"])
def test_a_del_is_answered_in_whatever_version(version: object) -> None:
    protocol.check_version({"cniVersion": version}, "DEL")
    assert protocol.version_of(json.dumps({"cniVersion": version}).encode()) == protocol.LATEST


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"null", b'{"a": 1e999}'])
def test_input_other_than_a_json_object_is_a_decoding_failure(raw: bytes) -> None:
    with pytest.raises(CniError, match="stdin is not") as caught:
        protocol.parse_configuration(raw)
    assert caught.value.code == 6


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0"])
def test_old_versions_add_the_family_of_each_address_and_lose_nothing(version: str) -> None:
    result = protocol.result_in_version(RESULT, version)
    assert [ip["version"] for ip in result["ips"]] == ["4", "6"]
    assert result["unknown"] == RESULT["unknown"]
    assert result["cniVersion"] == version
    assert protocol.result_in_version(result, "1.0.0") == RESULT


def test_a_result_in_its_own_version_is_passed_through() -> None:
    assert protocol.result_in_version(RESULT, "1.0.0") == RESULT


@pytest.mark.parametrize("index", [None, -1, 7, "1"])
def test_an_address_without_an_interface_is_the_containers(index: object) -> None:
    result = {**RESULT, "ips": [{"address": "10.0.0.2/24", "interface": index}]}
    assert [str(endpoint) for endpoint in protocol.endpoints_of(result, "eth0")] == ["10.0.0.2/24"]


def test_only_addresses_of_the_interface_in_the_sandbox_count() -> None:
    ips = [{"address": f"10.0.{index}.2/24", "interface": index} for index in range(3)]
    endpoints = protocol.endpoints_of({**RESULT, "ips": ips}, "eth0")
    assert [str(endpoint) for endpoint in endpoints] == ["10.0.1.2/24"]


@pytest.mark.parametrize(
    "broken", [{"ips": 5}, {"ips": [5]}, {"interfaces": {}}, {"ips": [{}]}, {"ips": [{"address": "x"}]}]
)
def test_an_invalid_prev_result_is_refused_with_its_position(broken: dict[str, Any]) -> None:
    with pytest.raises(CniError, match=r"prevResult\.") as caught:
        protocol.endpoints_of({**RESULT, **broken}, "eth0")
    assert caught.value.code == 7


def test_gc_distinguishes_a_missing_list_from_an_empty_one() -> None:
    entry = {"containerID": "a", "ifname": "eth0"}
    assert protocol.valid_attachments({}) is None
    assert protocol.valid_attachments({"cni.dev/valid-attachments": None}) == set()
    assert protocol.valid_attachments({"cni.dev/valid-attachments": [entry]}) == {("a", "eth0")}
    assert protocol.valid_attachments({"cni.dev/attachments": [entry]}) == {("a", "eth0")}
    with pytest.raises(CniError, match="without containerID and ifname"):
        protocol.valid_attachments({"cni.dev/valid-attachments": [{}]})


@pytest.mark.parametrize(
    ("raw", "version"),
    [(b"", "1.1.0"), (b'{"cniVersion":"1.0.0"}', "1.0.0"), (b'{"cniVersion":"9"}', "1.1.0"), (b"x", "1.1.0")],
)
def test_version_answers_any_input(raw: bytes, version: str) -> None:
    assert protocol.version_report(raw) == {"cniVersion": version, "supportedVersions": list(protocol.VERSIONS)}
