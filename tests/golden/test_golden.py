"""For each NN-case: a configuration with prevResult, the expected elements in nft syntax, and the expected result.

UPDATE_GOLDEN=1 rewrites the expected files; review them before you commit.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cni_quantum_nat.api import NatManager, Network
from cni_quantum_nat.backends.nftables.rules import plan_rules
from cni_quantum_nat.backends.nftables.text import element_text
from cni_quantum_nat.cni import protocol
from cni_quantum_nat.cni.configuration import validated
from cni_quantum_nat.cni.entry import read_attachment
from cni_quantum_nat.cni.settings import read_settings
from cni_quantum_nat.state.directory import State

CASES = sorted(path.parent for path in Path(__file__).parent.glob("*/prev_result.json"))
NETWORKS = sorted(path.parent for path in Path(__file__).parent.glob("*/network.json"))
NAMESPACE = protocol.Namespace("/run/netns/container", (4, 4026532000), (24, 2))
ENVIRONMENT = protocol.Environment("ADD", "container", "eth0", "/run/netns/container")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def elements_of(configuration: dict[str, Any], state: State) -> str:
    settings = read_settings(configuration, state, configuration["name"], lambda _: None)
    attachment = read_attachment(ENVIRONMENT, configuration, settings, NAMESPACE)
    for endpoint in attachment.endpoints:
        endpoint.host_interface = "cni0"
    return "".join(f"{element_text(element)}\n" for element in plan_rules(attachment))


def compare(expected: Path, got: str) -> None:
    if "UPDATE_GOLDEN" in os.environ:
        expected.write_text(got)
    wanted = expected.read_text()
    difference = difflib.unified_diff(wanted.splitlines(True), got.splitlines(True), str(expected), "got")
    assert wanted == got, "".join(difference)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_request_gives_the_expected_elements_and_result(case: Path, tmp_path: Path) -> None:
    previous = read(case / "prev_result.json")
    configuration = {**read(case / "conf.json"), "prevResult": previous}
    state = State(str(tmp_path / "state"))
    state.lock()
    compare(case / "expected.nft", elements_of(configuration, state))
    result = protocol.result_in_version(previous, configuration["cniVersion"])
    compare(case / "expected.json", json.dumps(result, indent=2) + "\n")


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_a_network_of_the_api_gets_the_elements_on_file(case: Path) -> None:
    manager = NatManager(validated(read(case / "conf.json")))
    attachment = manager._network_attachment(Network(**read(case / "network.json")))
    compare(case / "expected.nft", "".join(f"{element_text(element)}\n" for element in plan_rules(attachment)))
