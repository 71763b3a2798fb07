"""Any input is answered with one CNI object, and never becomes syntax of nft or iptables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.harness import assert_is_an_answer, call

ROOT = Path(__file__).parents[3]
FUZZ_SECONDS = 15
HOSTILE = st.sampled_from(
    [
        'a"b',
        "a;b",
        "a\nb",
        "a'b",
        "a\\",
        "a\0b",
        "a b",
        "$(id)",
        "`id`",
        "} drop",
        "-j ACCEPT",
        "é",
        "\ud800",
        "..",
        "/",
    ]
)
SCALARS = st.one_of(
    HOSTILE, st.none(), st.booleans(), st.integers(-1, 70000), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20), st.integers(2**60, 2**70),
    st.sampled_from(["10.0.0.2/24", "fd00::2/64", "eth0", "tcp", "10.0.0.1", "::1", "default", "nftables", "iptables"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
KEYS = st.sampled_from(
    [
        "masquerade",
        "externalInterface",
        "snatAddress",
        "portRange",
        "hostPortConflict",
        "sharedPorts",
        "sharedAffinity",
        "conntrackTimeout",
        "allowFrom",
        "publishOn",
        "udpTimeout",
        "udpStreamTimeout",
        "ipv6Localhost",
        "snat",
        "masqAll",
        "markMasqBit",
        "externalSetMarkChain",
        "conditionsV4",
        "conditionsV6",
        "backend",
        "metrics",
        "stateDir",
        "name",
        "cniVersion",
        "runtimeConfig",
        "prevResult",
        "capabilities",
        "args",
        "cni.dev/valid-attachments",
    ]
)
ENTRY_KEYS = st.sampled_from(["hostPort", "HostPort", "containerPort", "protocol", "hostIP", "hostip"])
ENTRIES = st.dictionaries(ENTRY_KEYS, VALUES, max_size=6)
NAMES = HOSTILE.filter(lambda name: "\0" not in name and "\ud800" not in name) | st.sampled_from(["c1", "eth0"])


def environment(command: str, container: str = "c1", interface: str = "eth0", args: str = "") -> dict[bytes, bytes]:
    variables = {
        "CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": interface, "CNI_NETNS": "/proc/self/ns/mnt",
        "CNI_ARGS": args, "CNI_PATH": "/opt",
    }  # fmt: skip
    return {name.encode(): value.encode(errors="surrogateescape") for name, value in variables.items()}


def configuration(**keys: Any) -> dict[str, Any]:
    result = {
        "interfaces": [{"name": "eth0", "sandbox": "/proc/self/ns/mnt"}],
        "ips": [{"interface": 0, "address": "10.1.2.3/24"}, {"interface": 0, "address": "fd00::3/64"}],
    }
    return {"cniVersion": "1.1.0", "name": "net", "stateDir": "/nowhere", "prevResult": result, **keys}


COMMANDS = st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"])


def test_a_valid_call_is_planned() -> None:
    sound = configuration(runtimeConfig={"portMappings": [{"hostPort": 80, "containerPort": 80}]})
    status, printed = call(environment("ADD"), json.dumps(sound).encode())
    assert (status, printed[0].get("code")) == (0, None)


@settings(max_examples=400, deadline=None)
@given(COMMANDS, st.dictionaries(KEYS, VALUES, max_size=4))
@example("GC", {"cni.dev/valid-attachments": True})
@example("ADD", {"externalInterface": "a\0b"})
@example("ADD", {"stateDir": "/\ud800"})
@example("ADD", {"externalInterface": ["a'b"], "backend": "iptables"})
def test_any_value_of_any_key_is_answered(command: str, keys: dict[str, Any]) -> None:
    assert_is_an_answer(*call(environment(command), json.dumps(configuration(**keys)).encode()))


@settings(max_examples=300, deadline=None)
@given(st.lists(ENTRIES, max_size=4), st.sampled_from(["nftables", "iptables"]))
def test_any_port_mapping_is_answered(entries: list[dict[str, Any]], backend: str) -> None:
    raw = json.dumps(configuration(runtimeConfig={"portMappings": entries}, backend=backend)).encode()
    assert_is_an_answer(*call(environment("ADD"), raw))


@settings(max_examples=300, deadline=None)
@given(COMMANDS, NAMES, NAMES, st.text(max_size=40).filter(lambda text: "\0" not in text and text.isprintable()))
@example("ADD", "c1", 'e"};', "")
@example("ADD", "c1", "e\\", "K8S_POD_NAME=x;y=\n")
def test_any_name_is_refused_or_remains_a_single_word(command: str, container: str, interface: str, args: str) -> None:
    ports = {"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "127.0.0.1"}]}
    raw = json.dumps(configuration(runtimeConfig=ports)).encode()
    assert_is_an_answer(*call(environment(command, container, interface, args), raw))


@settings(max_examples=300, deadline=None)
@given(COMMANDS, st.binary(max_size=200))
@example("ADD", b"\xff\xfe")
@example("ADD", b"[" * 1_000_000)
@example("ADD", b'{"a":' * 100_000)
@example("ADD", b'{"a": NaN}')
@example("ADD", b"1" * 5000)
@example("ADD", b'{"name": "a", "name": "b"}')
def test_any_bytes_on_standard_input_are_answered(command: str, raw: bytes) -> None:
    assert_is_an_answer(*call(environment(command), raw))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([b"CNI_COMMAND", b"CNI_CONTAINERID", b"CNI_IFNAME", b"CNI_NETNS", b"CNI_ARGS"]),
                       st.binary(max_size=20).filter(lambda value: b"\0" not in value)))  # fmt: skip
def test_any_environment_is_answered(variables: dict[bytes, bytes]) -> None:
    assert_is_an_answer(*call(variables, json.dumps(configuration()).encode()))


def test_a_short_fuzzing_run_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="the kernel has no atheris for this Python")
    seeds = tmp_path / "corpus"
    seeds.mkdir()
    write = "from tests.fuzz.fuzz_input import seed; import sys; sys.stdout.buffer.write(seed())"
    sound = subprocess.run([sys.executable, "-c", write], cwd=ROOT, capture_output=True, check=True)
    (seeds / "sound").write_bytes(sound.stdout)
    line = [sys.executable, "-m", "tests.fuzz.fuzz_input", f"-max_total_time={FUZZ_SECONDS}", "-max_len=4096",
            "-rss_limit_mb=2000", f"-artifact_prefix={tmp_path}/", str(seeds)]  # fmt: skip
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "stat::number_of_executed_units" in done.stderr or "DONE" in done.stderr
