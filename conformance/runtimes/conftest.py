"""Fixtures: a host with an outside client, and one runtime at a time for all its tests."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conformance.table import PREFACE, leave_out, note
from tests.kernel.topology import Host

from . import RUNTIMES
from .cluster import Cluster
from .runtime import shell

if TYPE_CHECKING:
    from collections.abc import Iterator


_PREFACE = """# Tested with real runtimes

Each behaviour was tried on each runtime, with real containers and real packets, as a user or a kubelet would. `-` means
that the runtime does not have it; the note says why. `conformance/run --table docs/development/conformance-runtimes.md`
writes this page.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runtime", action="append", choices=sorted(RUNTIMES), help="only this one; may be repeated")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every behaviour with every runtime, one runtime after the other."""
    if "subject" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--runtime") or list(RUNTIMES)
        names = [name for name in wanted if name in getattr(metafunc.module, "SUBJECTS", RUNTIMES)]
        metafunc.parametrize("subject", names, scope="session")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PREFACE] = _PREFACE.splitlines()
    config.addinivalue_line("markers", "needs(what): only for runtimes that have it, see Runtime.lacks")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests for features that a runtime lacks, and of other runtimes than those that are asked for."""
    items[:] = [item for item in items if item.callspec.params["subject"] in RUNTIMES]  # type: ignore[attr-defined]
    lacking = {}
    for item in items:
        needed = item.get_closest_marker("needs")
        lacks = RUNTIMES[item.callspec.params["subject"]].lacks  # type: ignore[attr-defined]
        if needed and needed.args[0] in lacks:
            lacking[item] = lacks[needed.args[0]]
    leave_out(config, items, lacking)


@pytest.fixture(scope="session")
def cluster(
    subject: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    """A cluster with the frozen plugin."""
    with started(subject, Path(os.environ["QUANTUM_NAT_PLUGIN"]), tmp_path_factory) as made:
        note(request.config, f"{subject} is {made.runtime.version()}")
        yield made


@pytest.fixture
def cluster_of_pip(subject: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with the plugin installed by pip."""
    with started(subject, Path(shell("pip_command")), tmp_path_factory) as made:
        yield made


@contextmanager
def started(subject: str, plugin: Path, directories: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a runtime on its own host, and remove everything afterwards."""
    with ExitStack() as stack:
        host = Host(stack)
        host.client.serve("outside", 80)
        runtime = RUNTIMES[subject](directories.mktemp(subject), plugin, host)
        stack.callback(runtime.stop)
        runtime.start()
        yield Cluster(runtime)


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove the containers that a test leaves."""
    used = [request.getfixturevalue(name) for name in ("cluster", "cluster_of_pip") if name in request.fixturenames]
    yield
    for cluster in used:
        cluster.remove_all()
