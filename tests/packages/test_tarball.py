"""The archive, installed in systems with an old C library, a new one, or none, and called there as a runtime calls it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.plugin import publish

from .root import LINKS, SYSTEMS, Root
from .runtime import reaches_web

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.kernel.plugin import Plugin
    from tests.kernel.topology import Container, Host


@pytest.fixture(params=SYSTEMS)
def root(request: pytest.FixtureRequest, tmp_path: Path, host: Host, stack: ExitStack) -> Root:
    """Return a system's root directory with the archive installed from outside, as an image does it, on a host that has network namespaces by now."""
    assert host.path.exists()
    made = Root(request.param, tmp_path, stack)
    subprocess.run(["tar", "-C", str(tmp_path), "-xzf", os.environ["QUANTUM_NAT_TARBALL"]], check=True)
    (unpacked,) = tmp_path.glob("quantum-nat-*")
    subprocess.run(
        [unpacked / "install"], env={**os.environ, "DESTDIR": str(made.path)}, check=True, stdout=subprocess.DEVNULL
    )
    return made


@pytest.mark.usefixtures("web")
def test_a_container_gets_its_ports_in_any_system(host: Host, plugin: Plugin, web: Container) -> None:
    """The first ADD takes the full program; the second, of a network that is known, the plugin alone."""
    assert reaches_web(host)
    other = host.container()
    other.serve("other", 80)
    attachment = plugin.add(other, publish(8081))
    assert host.client.ask("198.51.100.1", 8081).server == "other"
    attachment.check()
    attachment.delete()
    plugin.call(
        "CHECK",
        plugin.configuration(prevResult=web.previous_result(), runtimeConfig={"portMappings": [publish(8080)]}),
        web,
    )
    plugin.status()
    plugin.gc({"cni.dev/valid-attachments": []})
    assert host.owners() == set()


def test_a_person_gets_an_answer_in_any_system(root: Root) -> None:
    for link in LINKS:
        done = subprocess.run(
            root.line(link),
            env={**os.environ, "CNI_COMMAND": "VERSION"},
            input="{}",
            capture_output=True,
            text=True,
            check=True,
        )
        assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]
    process = root.start("/usr/sbin/quantum-nat", "list")
    assert process.communicate()[0].startswith("NETWORK")
    assert process.returncode == 0


def test_there_is_a_system_without_any_c_library() -> None:
    """What the others prove of an old or a new one, busybox's proves of none."""
    assert "busybox" in SYSTEMS
