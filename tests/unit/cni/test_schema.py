"""The descriptions of the configuration agree: the model, the schemas, docs/configuration.md."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cni_quantum_nat.cni.configuration import NatConfig, normalise
from cni_quantum_nat.model.errors import CniError

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "configuration.md"
PLUGIN = ROOT / "docs" / "quantum-nat.schema.json"
CONFLIST = ROOT / "docs" / "quantum-nat.conflist.schema.json"


def validator(path: Path) -> Draft202012Validator:
    schema = json.loads(path.read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize(("options", "file"), [([], PLUGIN), (["--conflist"], CONFLIST)])
def test_the_schemas_in_docs_match_the_command(options: list[str], file: Path) -> None:
    line = [sys.executable, "-I", "-m", "cni_quantum_nat", "schema", *options]
    printed = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    assert printed == file.read_text(), f"quantum-nat schema {' '.join(options)} > {file.relative_to(ROOT)}"


def test_every_example_on_the_page_is_valid() -> None:
    examples = [json.loads(text.split("```")[0]) for text in PAGE.read_text().split("```json\n")[1:]]
    assert examples
    for example in examples:
        validator(CONFLIST).validate(example)


GIVEN: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"snatAddress": "192.0.2.1"}, True),
    ({"snatAddress": ["192.0.2.1", "2001:db8::1"]}, True),
    ({"externalInterface": ["eth0"]}, True),
    ({"masquerade": "ipv4", "someday": 1}, True),
    ({"portRange": "1-2"}, True),
    ({"masquerade": "yes"}, False),
    ({"sharedPorts": [0]}, False),
    ({"portRange": "x"}, False),
    ({"snat": 1}, False),
    ({"snatAddress": 5}, False),
    ({"backend": "ebtables"}, False),
]


@pytest.mark.parametrize(("given", "valid"), GIVEN)
def test_the_schemas_and_add_agree(given: dict[str, Any], valid: bool) -> None:
    plugin = {"type": "quantum-nat", **given}
    network = {"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "bridge"}, plugin]}
    assert validator(PLUGIN).is_valid(plugin) == valid
    assert validator(CONFLIST).is_valid(network) == valid
    try:
        normalise(given)
    except CniError:
        assert not valid
    else:
        assert valid


def test_a_list_without_the_plugin_and_a_network_without_a_name_are_invalid() -> None:
    ours = {"type": "quantum-nat"}
    assert not validator(CONFLIST).is_valid({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]})
    assert not validator(CONFLIST).is_valid({"cniVersion": "1.0.0", "plugins": [ours]})


def test_the_table_on_the_page_matches_the_model() -> None:
    written = PAGE.read_text()
    with_table = runpy.run_path(str(ROOT / "packaging" / "configuration.py"))["with_table"]
    assert with_table(written) == written, "python packaging/configuration.py"
    assert written.count("| `") > len(NatConfig.model_fields)
