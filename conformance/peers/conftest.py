"""Fixtures: the test topology of the kernel tests, and the subjects, which are the columns of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conformance.table import PREFACE
from tests.kernel.conftest import client, container, host, other_container, stack

from .port_mapper import PORT_MAPPERS, PortMapper

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.topology import Host

__all__ = ["client", "container", "host", "other_container", "stack"]


_ORDER = (  # of the tables
    "test_portmap_traffic",
    "test_portmap_configuration",
    "test_portmap_lifecycle",
    "test_portmap_check",
    "test_complaints",
    "test_masquerade",
    "test_netavark",
    "test_migration",
)
_PREFACE = """# Compared with portmap, ipMasq and netavark

Each row is something that a peer promises or tests itself, restated as what a client sees, and tried with real packets
between network namespaces. All subjects get the same configuration except for `type` and the state directory. portmap
and bridge are v1.9.1, netavark is 2.1.0. `differs` means that the row does not hold there, and that the test saw it;
the note says why. An empty cell means that the row does not concern this subject.

`conformance/portmap --table docs/development/conformance-portmap.md` writes this page. If you use portmap,
[migrating-from-portmap.md](../migrating-from-portmap.md) says what changes for you.
"""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PREFACE] = _PREFACE.splitlines()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _ORDER.index(item.path.stem))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with every port mapper, unless it names its subjects."""
    marked = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "mapper" in metafunc.fixturenames and "subject" not in marked:
        metafunc.parametrize("subject", PORT_MAPPERS)


@pytest.fixture
def mapper(subject: str, host: Host, tmp_path: Path) -> PortMapper:
    """The subject, run in the host's namespace."""
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        host.set_sysctl(setting, "1")  # as the bridge plugin does for a gateway
    return PortMapper(subject, host, tmp_path / "state")
