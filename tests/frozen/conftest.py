"""The release, with nothing beside it or on this host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .release import Release

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["snapshot", "ordinary"])
def start(request: pytest.FixtureRequest) -> str:
    """Return how the plugin starts."""
    return str(request.param)


@pytest.fixture
def alone(tmp_path: Path, start: str) -> Iterator[Release]:
    made = Release(tmp_path / "root", is_alone=True, has_snapshot=start == "snapshot")
    yield made
    made.close()


@pytest.fixture
def release(tmp_path: Path, start: str) -> Iterator[Release]:
    made = Release(tmp_path / "root", is_alone=False, has_snapshot=start == "snapshot")
    yield made
    made.close()
