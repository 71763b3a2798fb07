"""The rpm package, installed with rpm(8) into a Debian root directory, which is available everywhere."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .root import LINKS, NEXT, RELEASES, STATE, Root, built, derived_tree
from .runtime import reaches_web, under_load

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.kernel.plugin import Plugin
    from tests.kernel.topology import Container, Host

PROJECT = Path(__file__).parents[2]


def made(target: Path, version: str, layout: int | None = None) -> Path:
    """Make an rpm with this version."""
    target.mkdir()
    tree = derived_tree(built(), target / "tree", version, layout=layout)
    line = [str(PROJECT / "packaging/rpm"), str(tree), version.partition("-")[0], str(target)]
    subprocess.run(line, check=True, capture_output=True, timeout=300)  # it compresses as well as it can
    return next(target.glob("*.rpm"))


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Packages of two versions, the older one first."""
    directory = tmp_path_factory.mktemp("rpm")
    return made(directory / "old", "1.0-1"), made(directory / "new", NEXT)


def rpm(root: Root, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run rpm on the root directory, with --nodeps since rpm does not know its glibc."""
    line = ["rpm", "--root", str(root.path), "--dbpath", "/var/lib/rpm", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def root(tmp_path: Path, host: Host, stack: ExitStack, versions: tuple[Path, Path]) -> Root:
    """A root directory with the older version installed, on a host that already has network namespaces."""
    assert host.path.exists()
    root = Root(RELEASES[0], tmp_path, stack)
    done = rpm(root, "--install", "--nodeps", str(versions[0]))
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.usefixtures("web")
def test_every_call_succeeds_while_the_rpm_is_upgraded_and_downgraded(
    host: Host, root: Root, plugin: Plugin, versions: tuple[Path, Path]
) -> None:
    with under_load(plugin, host.container()) as load:
        for package in (versions[1], versions[0], versions[1]):
            done = rpm(root, "--upgrade", "--nodeps", "--oldpackage", str(package))
            assert done.returncode == 0, done.stderr
            assert reaches_web(host)
    assert load.failures == []
    assert len(root.internals()) == 1, "modules of the previous version are left"


@pytest.mark.usefixtures("web")
def test_a_downgrade_of_the_rpm_below_the_rules_that_containers_use_is_refused(
    host: Host, root: Root, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    newer = made(tmp_path / "newer", "100.0-1", layout=1000)
    assert rpm(root, "--upgrade", "--nodeps", str(newer)).returncode == 0
    done = rpm(root, "--upgrade", "--nodeps", "--oldpackage", str(versions[0]))
    assert done.returncode != 0
    assert "Stop these containers first" in done.stdout + done.stderr
    assert "100.0" in rpm(root, "--query", "quantum-nat").stdout
    assert reaches_web(host)


def test_an_erased_rpm_leaves_the_traffic_of_containers_and_else_nothing(
    host: Host, root: Root, plugin: Plugin, web: Container, versions: tuple[Path, Path]
) -> None:
    assert rpm(root, "--erase", "quantum-nat").returncode == 0
    assert reaches_web(host)
    assert not (root.path / LINKS[0].lstrip("/")).is_symlink()
    assert rpm(root, "--install", "--nodeps", str(versions[0])).returncode == 0
    plugin.call("DEL", plugin.configuration(prevResult=web.previous_result()), web)
    assert rpm(root, "--erase", "quantum-nat").returncode == 0
    assert not (root.path / STATE.relative_to("/")).exists()
