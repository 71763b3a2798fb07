"""`quantum-nat validate`: each problem of a configuration file, at its position."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cni_quantum_nat.cni.configuration import normalise
from cni_quantum_nat.commands.jsonfile import decode
from cni_quantum_nat.model.errors import CniError

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"
OURS = {"type": "quantum-nat", "capabilities": {"portMappings": True}}
BRIDGE = {"type": "bridge", "hairpinMode": True}


def conflist(*plugins: Any, **keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "net", "plugins": list(plugins), **keys}


def validate(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[str]:
    binary = os.environ.get("QUANTUM_NAT_PLUGIN")
    command = [binary] if binary else [sys.executable, "-I", "-m", "cni_quantum_nat"]
    done = subprocess.run([*command, "validate", *arguments], input=given, capture_output=True, check=False)
    text = (done.stdout.decode(), done.stderr.decode())
    assert text[1] == "", "findings go to standard output"
    return subprocess.CompletedProcess(done.args, done.returncode, *text)


@pytest.mark.parametrize("file", sorted((PAGE.parent / "conflists").iterdir()), ids=lambda file: file.stem)
def test_the_example_lists_are_valid(file: Path) -> None:
    assert validate(str(file)).stdout == f"{file}: ok\n"


def found(content: Any) -> list[tuple[str, str, str]]:
    """Return severity, path and message of the findings for a list on standard input."""
    done = validate("--json", "-", given=json.dumps(content).encode())
    messages = [(entry["severity"], entry["path"], entry["message"]) for entry in json.loads(done.stdout)]
    assert done.returncode == any(severity == "error" for severity, _, _ in messages)
    return messages


@pytest.mark.parametrize("page", [PAGE, PAGE.parents[1] / "README.md"], ids=lambda page: page.name)
def test_the_list_of_the_page_is_ok(page: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.conflist"
    file.write_text(page.read_text().split("```json\n")[1].split("```")[0])
    done = validate(str(file))
    assert (done.returncode, done.stdout) == (0, f"{file}: ok\n")


def test_an_invalid_value_is_reported_at_its_position_with_the_message_of_add(tmp_path: Path) -> None:
    file = tmp_path / "net.conflist"
    wrong = {**OURS, "sharedPorts": [80, 0]}
    file.write_text(json.dumps(conflist(BRIDGE, wrong), indent=2))
    lines = file.read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.strip() == "0")
    with pytest.raises(CniError) as caught:
        normalise(wrong)
    done = validate(str(file))
    assert done.returncode == 1
    assert done.stdout == f"{file}:{line}:9: plugins[1].sharedPorts[1]: {caught.value.message}\n"


@pytest.mark.parametrize(
    ("content", "severity", "path", "said"),
    [
        ([], "error", "", "not a JSON object"),
        (conflist(BRIDGE, OURS, cniVersion="2.0.0"), "error", "cniVersion", "unsupported version '2.0.0'"),
        (conflist(BRIDGE, OURS, name="../etc"), "error", "name", "name is '../etc'"),
        (conflist(), "error", "plugins", "at least one plugin"),
        (conflist(5, BRIDGE, OURS), "error", "plugins[0]", "an object with a type"),
        (conflist(BRIDGE), "warning", "plugins", "no plugin has type quantum-nat"),
        (conflist(BRIDGE, {"type": "portmap"}), "warning", "plugins[1].type", "portmap publishes the ports"),
        (conflist(BRIDGE, OURS, OURS), "error", "plugins[2]", "in the list twice"),
        (conflist(OURS, BRIDGE), "error", "plugins[0]", "before bridge"),
        (conflist(OURS), "error", "plugins[0]", "creates an interface"),
        (
            conflist({**BRIDGE, "ipMasq": True}, OURS),
            "warning",
            "plugins[0].ipMasq",
            "both bridge and quantum-nat masquerade",
        ),
        (conflist({"type": "bridge"}, OURS), "warning", "plugins[0].hairpinMode", "cannot reach itself"),
        (conflist(BRIDGE, OURS, {**OURS, "type": "portmap"}), "error", "plugins[2].type", "publish ports"),
        (conflist(BRIDGE, OURS, {"type": "portmap"}), "warning", "plugins[2].type", "publish ports"),
        (
            conflist(BRIDGE, {"type": "quantum-nat"}),
            "warning",
            "plugins[1].capabilities",
            "does not pass on published ports",
        ),
        (conflist(BRIDGE, {**OURS, "masquarade": 1}), "warning", "plugins[1].masquarade", "did you mean masquerade?"),
        (conflist(BRIDGE, {**OURS, "masq_all": 1}), "warning", "plugins[1].masq_all", "did you mean masqAll?"),
        (conflist(BRIDGE, {**OURS, "stateDir": "x"}), "error", "plugins[1].stateDir", "not an absolute path"),
        (
            conflist(BRIDGE, {**OURS, "backend": "iptables", "sharedPorts": [80]}),
            "error",
            "plugins[1].sharedPorts",
            "is not supported by backend",
        ),
    ],
)
def test_each_problem_is_the_only_finding(content: Any, severity: str, path: str, said: str) -> None:
    messages = found(content)
    assert [message[:2] for message in messages] == [(severity, path)]
    assert said in messages[0][2]


def test_ip_masq_is_accepted_if_the_plugin_does_not_masquerade() -> None:
    assert found(conflist({**BRIDGE, "ipMasq": True}, {**OURS, "masquerade": False})) == []


def test_a_list_in_a_conf_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "net.conf"
    file.write_text(json.dumps(conflist(BRIDGE, OURS)))
    done = validate(str(file))
    assert done.returncode == 1
    assert "rename it to end in .conflist" in done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"", "-:1:1: not JSON: expected a value"),
        (b'{"a": 1,}', "-:1:8: not JSON: unexpected comma before '}'"),
        (b'{"a": 1\n "b": 2}', "-:2:2: not JSON: expected ',' or '}'"),
        (b"{'a': 1}", '-:1:2: not JSON: expected a key in "double quotes"'),
        (b'{"a" 1}', "-:1:6: not JSON: expected ':' after the key"),
        (b'{"a": NaN}', "-:1:7: not JSON: expected a value"),
        (b'{"a":\n "\xff"}', "-:2:3: byte 0xff is not UTF-8"),
        (b"{} {}", "-:1:4: not JSON: unexpected text after the value"),
        (b'{"a": "b', "-:1:7: not JSON: unterminated string"),
        (b"[" * 100_000, "-:1:102: not JSON: nested more than 100 levels deep"),
        (b"[" + b"9" * 6000 + b"]", "-:1:2: not JSON: this number is too long"),
        (b" " * (50 << 20), "-: more than 1048576 bytes"),
    ],
)
def test_invalid_json_is_reported_with_its_position(given: bytes, said: str) -> None:
    done = validate("-", given=given)
    assert done.returncode == 1
    assert done.stdout.startswith(said)
    assert done.stdout.count("\n") == 1


def test_a_duplicate_key_is_an_error_at_its_second_position() -> None:
    text = json.dumps(conflist(BRIDGE, OURS)).replace('"name"', '"name": "net",\n "name"').encode()
    done = validate("-", given=text)
    assert (done.returncode, done.stdout) == (1, "-:2:2: name: duplicate key; remove one of them\n")


def test_an_unreadable_file_does_not_prevent_the_check_of_the_next(tmp_path: Path) -> None:
    file = tmp_path / "net.conflist"
    file.write_text(json.dumps(conflist(BRIDGE, OURS)))
    done = validate("/nonexistent", str(file))
    assert done.returncode == 1
    assert done.stdout == f"/nonexistent: cannot be read: No such file or directory\n{file}: ok\n"


@pytest.mark.parametrize(
    "text", ['{"a": [1, -2.5e3, "\\u00e9", null, true, {}], "b": {"c": false}}', "[]", '"x"', " 7 "]
)
def test_values_match_the_json_module(text: str) -> None:
    assert decode(text).value == json.loads(text)


def test_add_does_not_know_python_names_of_keys_either() -> None:
    assert normalise({"masq_all": 5, "conntrack_timeout": 1}) == normalise({})
