"""Fixtures: a host in network namespaces, and a Debian release's root directory with the package installed."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.kernel.plugin import Plugin, publish
from tests.kernel.topology import Container, Host

from .root import LINKS, STATE, Root

if TYPE_CHECKING:
    from collections.abc import Iterator

# These need the releases' root directories, and the built packages (packaging/test) or a network (packaging/test-sources).
collect_ignore = (
    [] if "QUANTUM_NAT_DEB" in os.environ else ["test_deb.py", "test_image.py", "test_rpm.py", "test_tarball.py"]
)
if "SOURCES" not in os.environ:
    collect_ignore.append("test_sources.py")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def host(stack: ExitStack) -> Host:
    return Host(stack)


@pytest.fixture
def plugin(host: Host, root: Root) -> Plugin:
    """Return the plugin as a runtime finds it in the root directory."""
    made = Plugin(host, STATE)
    made.command = root.line(LINKS[0])
    return made


@pytest.fixture
def web(host: Host, plugin: Plugin) -> Container:
    """Return a container with a server that port 8080 of the host reaches."""
    container = host.container()
    container.serve("web", 80)
    plugin.add(container, publish(8080))
    return container
