"""Fixtures: a host, its containers, a client outside, and the plugin. Each test has its own and leaves nothing behind."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from .plugin import Plugin
from .topology import Container, Host, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    """Check that a test's threads have ended: otherwise the interpreter waits for them forever when it exits."""
    before = set(threading.enumerate())
    yield
    assert [thread for thread in threading.enumerate() if thread not in before and not thread.daemon] == []


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Cleans up what a test makes, in reverse order."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def host(stack: ExitStack, request: pytest.FixtureRequest) -> Host:
    """The host, with bridges cni0 and cni1, and an uplink."""
    made = Host(stack)
    stack.callback(lambda: _show_ruleset_on_failure(made, request))
    return made


@pytest.fixture
def client(host: Host) -> Namespace:
    """A client outside, on the uplink."""
    return host.client


@pytest.fixture
def container(host: Host) -> Container:
    """A container on cni0 with a server named `web` on port 80."""
    made = host.container()
    made.serve("web", 80)
    return made


@pytest.fixture
def other_container(host: Host) -> Container:
    """Another container on the same network (cni0)."""
    return host.container()


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """The backend: nftables, iptables-nft or iptables-legacy."""
    return getattr(request, "param", "nftables")


@pytest.fixture
def plugin(host: Host, tmp_path: Path, backend: str) -> Plugin:
    """The plugin, run in the host's namespace."""
    host.backend = backend
    if backend == "iptables-legacy":
        host.require_legacy_iptables()
    return Plugin(host, tmp_path / "state", programs_of(backend, tmp_path / "programs"))


def programs_of(backend: str, directory: Path) -> Path | None:
    """Make a directory with this variant of iptables under the usual names."""
    if backend == "nftables":
        return None
    directory.mkdir()
    variant = backend.removeprefix("iptables-")
    for prefix in ("iptables", "ip6tables"):
        for name in ("restore", "save"):
            (directory / f"{prefix}-{name}").symlink_to(f"/usr/sbin/{prefix}-{variant}-{name}")
    return directory


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "behaviour: run with every backend; with frozen, also with both variants of iptables"
    )
    config.addinivalue_line("markers", "nftables: run with the nftables backend only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests marked `behaviour` with every backend; with iptables-legacy if they are also marked `frozen`."""
    marked = metafunc.definition.get_closest_marker
    if "plugin" not in metafunc.fixturenames or not marked("behaviour") or marked("nftables"):
        return
    backends = ["nftables", "iptables-nft"]
    if marked("frozen"):
        backends.append("iptables-legacy")
    metafunc.parametrize("backend", backends, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call" and report.failed:  # type: ignore[attr-defined]
        item.user_properties.append(("failed", True))
    return report


def _show_ruleset_on_failure(host: Host, request: pytest.FixtureRequest) -> None:
    if ("failed", True) in request.node.user_properties:
        print(_without_empty_chains(host.ruleset()))  # noqa: T201 - pytest shows it with the failure


def _without_empty_chains(ruleset: str) -> str:
    """Leave out the 160 chains of prefix lengths, which are all alike."""
    shown, skipping = [], False
    for line in ruleset.splitlines():
        skipping = skipping or line.startswith("\tchain subnet")
        if not skipping:
            shown.append(line)
        skipping = skipping and line != "\t}"
    return "\n".join(shown)
