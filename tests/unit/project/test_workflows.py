"""The workflows call the project's own scripts, and actions by digest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
STEPS = re.findall(r"^([a-z]+)\(\) ", (ROOT / ".ci/run").read_text(), re.MULTILINE)


def test_there_are_workflows_and_steps() -> None:
    assert {path.name for path in WORKFLOWS} >= {"ci.yml", "release.yml"}
    assert {"check", "tests", "conformance", "packages"} <= set(STEPS)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_each_action_is_pinned_by_digest_with_its_version(workflow: Path) -> None:
    for action in re.findall(r"uses: (.*)", workflow.read_text()):
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+(\.\d+)+", action), action


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_each_script_and_step_is_there(workflow: Path) -> None:
    text = workflow.read_text()
    for script in re.findall(r"run: (?:sudo )?((?:packaging|tests|conformance|\.ci)/\S+)", text):
        assert (ROOT / script).is_file(), script
    for step in re.findall(r"{step: (\w+)", text):
        assert step in STEPS, step
