"""`quantum-nat validate`: each problem of a configuration file, at its place."""

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
    assert text[1] == "", "a finding is an answer, not a complaint"
    return subprocess.CompletedProcess(done.args, done.returncode, *text)


@pytest.mark.parametrize("file", sorted((PAGE.parent / "conflists").iterdir()), ids=lambda file: file.stem)
def test_the_lists_to_copy_are_without_fault(file: Path) -> None:
    assert validate(str(file)).stdout == f"{file}: ok\n"


def found(content: Any) -> list[tuple[str, str, str]]:
    """Return severity, path and message of what is found in a list on standard input."""
    done = validate("--json", "-", given=json.dumps(content).encode())
    messages = [(entry["severity"], entry["path"], entry["message"]) for entry in json.loads(done.stdout)]
    assert done.returncode == any(severity == "error" for severity, _, _ in messages)
    return messages


def test_the_list_of_the_page_is_ok(tmp_path: Path) -> None:
    file = tmp_path / "net.conflist"
    file.write_text(PAGE.read_text().split("```json\n")[1].split("```")[0])
    done = validate(str(file))
    assert (done.returncode, done.stdout) == (0, f"{file}: ok\n")


def test_a_wrong_value_is_shown_where_it_stands_in_the_words_of_add(tmp_path: Path) -> None:
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
        ([], "error", "", "is a JSON object"),
        (conflist(BRIDGE, OURS, cniVersion="2.0.0"), "error", "cniVersion", "it is '2.0.0'"),
        (conflist(BRIDGE, OURS, name="../etc"), "error", "name", "name is '../etc'"),
        (conflist(), "error", "plugins", "at least one plugin"),
        (conflist(5, BRIDGE, OURS), "error", "plugins[0]", "an object with a type"),
        (conflist(BRIDGE), "warning", "plugins", "no plugin is of type quantum-nat"),
        (conflist(BRIDGE, {"type": "portmap"}), "warning", "plugins[1].type", "portmap publishes the ports"),
        (conflist(BRIDGE, OURS, OURS), "error", "plugins[2]", "a second time"),
        (conflist(OURS, BRIDGE), "error", "plugins[0]", "before bridge"),
        (conflist(OURS), "error", "plugins[0]", "makes an interface"),
        (conflist({**BRIDGE, "ipMasq": True}, OURS), "warning", "plugins[0].ipMasq", "masquerade as well"),
        (conflist({"type": "bridge"}, OURS), "warning", "plugins[0].hairpinMode", "does not reach itself"),
        (conflist(BRIDGE, OURS, {**OURS, "type": "portmap"}), "error", "plugins[2].type", "both publish"),
        (conflist(BRIDGE, OURS, {"type": "portmap"}), "warning", "plugins[2].type", "both publish"),
        (conflist(BRIDGE, {"type": "quantum-nat"}), "warning", "plugins[1].capabilities", "never arrive"),
        (conflist(BRIDGE, {**OURS, "masquarade": 1}), "warning", "plugins[1].masquarade", "did you mean masquerade?"),
        (conflist(BRIDGE, {**OURS, "masq_all": 1}), "warning", "plugins[1].masq_all", "did you mean masqAll?"),
        (conflist(BRIDGE, {**OURS, "stateDir": "x"}), "error", "plugins[1].stateDir", "not an absolute path"),
        (
            conflist(BRIDGE, {**OURS, "backend": "iptables", "sharedPorts": [80]}),
            "error",
            "plugins[1].sharedPorts",
            "cannot be had with backend",
        ),
    ],
)
def test_each_problem_is_found_alone(content: Any, severity: str, path: str, said: str) -> None:
    messages = found(content)
    assert [message[:2] for message in messages] == [(severity, path)]
    assert said in messages[0][2]


def test_ip_masq_is_no_matter_where_we_do_not_masquerade() -> None:
    assert found(conflist({**BRIDGE, "ipMasq": True}, {**OURS, "masquerade": False})) == []


def test_a_list_in_a_file_for_one_plugin_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "net.conf"
    file.write_text(json.dumps(conflist(BRIDGE, OURS)))
    done = validate(str(file))
    assert done.returncode == 1
    assert "end the file's name in .conflist" in done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"", "-:1:1: not JSON: expected a value"),
        (b'{"a": 1,}', "-:1:8: not JSON: a comma stands before '}'"),
        (b'{"a": 1\n "b": 2}', "-:2:2: not JSON: expected ',' or '}'"),
        (b"{'a': 1}", '-:1:2: not JSON: expected a key in "double quotes"'),
        (b'{"a" 1}', "-:1:6: not JSON: expected ':' after the key"),
        (b'{"a": NaN}', "-:1:7: not JSON: expected a value"),
        (b'{"a":\n "\xff"}', "-:2:3: byte 0xff is not UTF-8"),
        (b"{} {}", "-:1:4: not JSON: unexpected text after the value"),
        (b'{"a": "b', "-:1:7: not JSON: unterminated string"),
        (b"[" * 100_000, "-:1:102: not JSON: nested more than 100 deep"),
        (b"[" + b"9" * 6000 + b"]", "-:1:2: not JSON: this number is too long"),
        (b" " * (50 << 20), "-: it has more than 1048576 bytes"),
    ],
)
def test_what_is_not_json_is_said_with_its_place(given: bytes, said: str) -> None:
    done = validate("-", given=given)
    assert done.returncode == 1
    assert done.stdout.startswith(said)
    assert done.stdout.count("\n") == 1


def test_a_key_that_is_there_twice_is_an_error_at_the_second_place() -> None:
    text = json.dumps(conflist(BRIDGE, OURS)).replace('"name"', '"name": "net",\n "name"').encode()
    done = validate("-", given=text)
    assert (done.returncode, done.stdout) == (1, "-:2:2: name: the key is there twice; keep one of them\n")


def test_a_file_that_cannot_be_read_does_not_keep_the_next_from_being_checked(tmp_path: Path) -> None:
    file = tmp_path / "net.conflist"
    file.write_text(json.dumps(conflist(BRIDGE, OURS)))
    done = validate("/nonexistent", str(file))
    assert done.returncode == 1
    assert done.stdout == f"/nonexistent: it cannot be read: No such file or directory\n{file}: ok\n"


@pytest.mark.parametrize(
    "text", ['{"a": [1, -2.5e3, "\\u00e9", null, true, {}], "b": {"c": false}}', "[]", '"x"', " 7 "]
)
def test_values_are_those_of_the_json_module(text: str) -> None:
    assert decode(text).value == json.loads(text)


def test_a_key_in_the_spelling_of_python_is_unknown_to_add_too() -> None:
    assert normalise({"masq_all": 5, "conntrack_timeout": 1}) == normalise({})
