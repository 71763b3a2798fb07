"""`validate` and `schema`: every message points to its place, and both speak of the same configuration as ADD does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from cni_quantum_nat.admin.network_file import problems_in
from cni_quantum_nat.admin.positions import Unreadable, line_and_column, read_located
from cni_quantum_nat.admin.schema import conflist_schema, plugin_schema
from cni_quantum_nat.hotpath.state import DEFAULT_DIRECTORY
from cni_quantum_nat.slowpath.config import NatConfig

ROOT = Path(__file__).parents[2]
GOOD = """{
  "cniVersion": "1.0.0",
  "name": "containers",
  "plugins": [
    {"type": "bridge", "hairpinMode": true},
    {
      "type": "quantum-nat",
      "capabilities": {"portMappings": true}
    }
  ]
}
"""


def validate(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "cni_quantum_nat", "validate", *arguments]
    return subprocess.run(line, input=text, capture_output=True, text=True, check=False)


def test_a_good_file_is_ok(tmp_path: Path) -> None:
    file = tmp_path / "10-net.conflist"
    file.write_text(GOOD)
    done = validate(str(file))
    assert (done.returncode, done.stdout) == (0, f"{file}: ok\n")


ERRORS: list[tuple[str, str, str]] = [
    ('"capabilities"', '"masquerade": "yes", "capabilities"', "8:7: error: plugins[1].masquerade: masquerade is 'yes'"),
    ('"capabilities"', '"snat": 1, "masqAll": 2, "capabilities"', "8:18: error: plugins[1].masqAll: masqAll is 2"),
    ('"1.0.0"', '"9.9"', "2:3: error: cniVersion: it is '9.9'"),
    ('"containers"', '"-x"', "3:3: error: name: it is '-x'"),
    ('"name": "containers",', "", "1:1: error: name: it is missing"),
    ('"type": "bridge"', '"type": "portmap"', "5:5: error: plugins[0]: portmap publishes the same ports"),
    ('{"type": "bridge", "hairpinMode": true},', "", "6:5: error: plugins[0]: it stands first"),
    ('"type": "bridge",', '"type": 5,', "5:5: error: plugins[0].type: each plugin needs a type"),
    ('"capabilities"', '"stateDir": "here", "capabilities"', "8:7: error: plugins[1].stateDir: stateDir is 'here'"),
    ('"name": "containers",', '"name": "a", "name": "b",', "3:16: error: name: the key stands twice"),
    ('"hairpinMode": true},', '"hairpinMode": true}', "6:5: error: this is not JSON: there should be ']' or ','"),
    ("true}\n    }", "true}\n    ", "10:3: error: this is not JSON: there should be '}' or ','"),
    ('"1.0.0"', "NaN", "2:17: error: this is not JSON: there should be a value"),
    ('"1.0.0"', "9" * 5000, "2:17: error: this is not JSON: "),
]


@pytest.mark.parametrize(("good", "bad", "said"), ERRORS)
def test_what_is_wrong_is_said_with_its_place(good: str, bad: str, said: str) -> None:
    assert good in GOOD
    done = validate("-", text=GOOD.replace(good, bad, 1))
    assert done.returncode == 1
    assert f"-:{said}" in done.stdout
    assert done.stderr == ""


WARNINGS: list[tuple[str, str, str]] = [
    (
        '"capabilities"',
        '"masqerade": true, "capabilities"',
        "8:7: warning: plugins[1].masqerade: this key is ignored: masquerade",
    ),
    ('"capabilities"', '"IPForwarding": true, "capabilities"', "ipForwarding is meant"),
    ('"capabilities": {"portMappings": true}', '"snat": true', "6:5: warning: plugins[1].capabilities: without"),
    ('"hairpinMode": true', '"ipMasq": true', "5:24: warning: plugins[0].ipMasq: bridge masquerades as well"),
    ('"hairpinMode": true', '"mtu": 1400', "warning: plugins[0].hairpinMode: it should be true"),
    ('"quantum-nat"', '"other"', '4:3: warning: plugins: none of them is "quantum-nat"'),
]


@pytest.mark.parametrize(("good", "odd", "said"), WARNINGS)
def test_what_is_odd_is_a_warning_and_no_failure(good: str, odd: str, said: str) -> None:
    done = validate("-", text=GOOD.replace(good, odd, 1))
    assert done.returncode == 0
    assert said in done.stdout


def test_programs_get_the_same(tmp_path: Path) -> None:
    file = tmp_path / "one.conf"
    file.write_text(
        '{"cniVersion": "1.1.0", "name": "n",\n "type": "quantum-nat", "capabilities": {"portMappings": true},\n "snat": 3}'
    )
    done = validate("--json", str(file))
    (report,) = json.loads(done.stdout)
    assert (done.returncode, report["line"], report["column"], report["path"]) == (1, 3, 2, "snat")
    assert (report["file"], report["severity"]) == (str(file), "error")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"[" * 100_000, b" " * 2_000_000, b"", b"[]", b'"', b'{"a":1}x', b'{"\\ud800": "\\ud800"}']
)
def test_hostile_content_gets_a_message(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "hostile"
    file.write_bytes(content)
    done = validate(str(file))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(file) in done.stdout + done.stderr


def test_a_file_that_is_not_there_is_named() -> None:
    done = validate("/nowhere")
    assert (done.returncode, done.stderr) == (1, "quantum-nat: cannot read /nowhere: No such file or directory\n")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(JSON, st.sampled_from([None, 2]), st.booleans())
def test_it_reads_what_the_standard_library_writes(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read_located(text).value == value


@given(st.text())
def test_what_it_does_not_read_the_standard_library_does_not_either(text: str) -> None:
    try:
        value = read_located(text).value
    except Unreadable as error:
        line_and_column(text, error.offset)
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
            json.loads(text, parse_constant=lambda name: float(f"no {name}"))
    else:
        assert json.loads(text) == value


@pytest.mark.parametrize(
    ("name", "made"), [("quantum-nat", plugin_schema()), ("quantum-nat.conflist", conflist_schema())]
)
def test_the_schema_in_docs_is_the_one_that_is_printed(name: str, made: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(made)
    assert json.loads((ROOT / "docs" / f"{name}.schema.json").read_text()) == made


def test_the_examples_in_the_documentation_fit_the_schema_and_are_valid() -> None:
    found = 0
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for text in re.findall(r"^```json\n(.*?)^```", file.read_text(), re.DOTALL | re.MULTILINE):
            if '"plugins"' in text:
                found += 1
                Draft202012Validator(conflist_schema()).validate(json.loads(text))
                assert problems_in(text) == []
    assert found


@pytest.mark.parametrize(
    "key",
    [{"masquerade": "yes"}, {"portRange": "a"}, {"externalInterface": "a/b"}, {"stateDir": "x"}, {"sharedPorts": [0]}],
)
def test_the_schema_refuses_what_the_plugin_refuses(key: dict[str, Any]) -> None:
    assert list(Draft202012Validator(plugin_schema()).iter_errors({"type": "quantum-nat", **key}))
    text = json.dumps(
        {"cniVersion": "1.1.0", "name": "n", "type": "quantum-nat", "capabilities": {"portMappings": True}, **key}
    )
    assert [problem.severity for problem in problems_in(text)] == ["error"]


def test_the_table_in_the_readme_has_every_key_with_its_default() -> None:
    rows = dict(re.findall(r"^\| (`.*?`) \| (.*?) \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    told = {key: default for keys, default in rows.items() for key in re.findall(r"`(\w+)`", keys)}
    for field in NatConfig.model_fields.values():
        if field.alias == "capabilities":
            continue  # it is in the list to copy
        default = json.dumps(field.get_default(call_default_factory=True))
        written = {"null": "none", "[]": "none", json.dumps(DEFAULT_DIRECTORY): f"`{DEFAULT_DIRECTORY}`"}
        expected = "any" if field.alias == "externalInterface" else written.get(default, f"`{default}`")
        assert told[str(field.alias)] == expected
