"""The dependencies in pyproject.toml are locked with hashes, and docs/dependencies.md explains each."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED_FOR = [
    Requirement(text)
    for text in (*PROJECT["dependencies"], *(t for extra in PROJECT["optional-dependencies"].values() for t in extra))
]
LOCK = (ROOT / "packaging" / "requirements.lock").read_text()
LOCKED = {
    name: (version, rest)
    for name, version, rest in re.findall(r"^([a-z0-9-]+)==(\S+)(.*(?:\n    .*)*)", LOCK, re.MULTILINE)
}


@pytest.mark.parametrize("asked", ASKED_FOR, ids=lambda asked: asked.name)
def test_every_dependency_is_locked_at_an_accepted_version(asked: Requirement) -> None:
    version, _ = LOCKED[asked.name]
    assert version in asked.specifier, "packaging/lock"


def test_every_locked_package_has_hashes() -> None:
    assert len(LOCKED) == LOCK.count("==") - LOCK.count(" == ")
    assert [name for name, (_, rest) in LOCKED.items() if "--hash=sha256:" not in rest] == []


@pytest.mark.parametrize("asked", ASKED_FOR, ids=lambda asked: asked.name)
def test_the_page_says_what_each_is_for(asked: Requirement) -> None:
    assert f"`{asked.name}`" in (ROOT / "docs" / "development" / "dependencies.md").read_text()
