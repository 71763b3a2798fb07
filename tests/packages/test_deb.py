"""The Debian package, installed, upgraded and removed in Debian's releases while containers run."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.kernel.topology import wait_until

from .root import LINKS, NEXT, PROGRAM, RELEASES, STATE, Root, built, derived
from .runtime import reaches_web, under_load, waits_for_lock

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from tests.kernel.plugin import Plugin
    from tests.kernel.topology import Container, Host


@pytest.fixture(scope="session")
def following(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of a later version."""
    return derived(built(), tmp_path_factory.mktemp("next"), NEXT)


@pytest.fixture(params=RELEASES)
def root(request: pytest.FixtureRequest, tmp_path: Path, host: Host, stack: ExitStack) -> Root:
    """A root directory with the package installed, on a host that already has network namespaces."""
    assert host.path.exists()
    made = Root(request.param, tmp_path, stack)
    made.install(built())
    return made


def test_it_is_found_by_each_runtime_and_by_a_person(root: Root) -> None:
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
    process = root.start("quantum-nat", "list")
    assert process.communicate()[0].startswith("NETWORK")
    for name in ("bash-completion/completions/quantum-nat", "man/man8/quantum-nat.8.gz", "doc/quantum-nat/copyright"):
        assert (root.path / "usr/share" / name).is_file()
    assert not list((root.path / "etc/systemd").rglob("quantum-nat*")), "the service is enabled"


@pytest.mark.usefixtures("web")
def test_a_container_gets_its_ports_from_the_package(host: Host, plugin: Plugin) -> None:
    assert reaches_web(host)
    assert "8080" in plugin.operate("list").stdout


def test_every_call_succeeds_while_the_package_is_upgraded_and_downgraded(
    host: Host, root: Root, plugin: Plugin, web: Container, following: Path
) -> None:
    with under_load(plugin, host.container()) as load:
        for package in (following, built(), following):
            root.install(package)
            assert reaches_web(host)
    assert load.failures == []
    assert len(root.internals()) == 1, "modules of the previous version are left"
    assert plugin.operate("port", web.id).stdout.strip(), "the records were lost"


@pytest.mark.usefixtures("web")
def test_a_call_that_began_before_an_upgrade_keeps_its_modules(
    host: Host, root: Root, plugin: Plugin, following: Path
) -> None:
    before = root.internals()
    program = root.path / PROGRAM
    inode = program.stat().st_ino
    with (root.path / STATE.relative_to("/") / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configuration = plugin.configuration("later", prevResult=host.container().previous_result())
        call = plugin.start("ADD", configuration, host.container())
        wait_until(lambda: waits_for_lock(program), "the call runs")
        upgrade = root.start_dpkg("--install", root.bring(following))
        wait_until(lambda: program.stat().st_ino != inode, "the program is replaced", timeout_s=30)
        assert upgrade.poll() is None
        assert set(before) < set(root.internals())
    plugin.finish(call)
    output, _ = upgrade.communicate(timeout=60)
    assert upgrade.returncode == 0, output
    assert len(root.internals()) == 1


@pytest.mark.usefixtures("web")
def test_a_downgrade_below_the_rules_that_containers_use_is_refused(
    host: Host, root: Root, plugin: Plugin, tmp_path: Path
) -> None:
    root.install(derived(built(), tmp_path, NEXT, layout=1000))
    process = root.start_dpkg("--install", root.bring(built()))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Stop these containers first" in output
    assert f"Version: {NEXT}" in root.dpkg("--status", "quantum-nat")
    assert reaches_web(host)
    plugin.call("VERSION", {"cniVersion": "1.1.0"})


def test_a_removed_package_leaves_the_traffic_and_comes_back_to_it(
    host: Host, root: Root, plugin: Plugin, web: Container
) -> None:
    root.dpkg("--remove", "quantum-nat")
    assert not (root.path / LINKS[0].lstrip("/")).is_symlink()
    assert reaches_web(host)
    root.install(built())
    plugin.call("DEL", plugin.configuration(prevResult=web.previous_result()), web)
    assert host.owners() == set()


@pytest.mark.usefixtures("web")
def test_a_purge_leaves_the_traffic_of_containers_and_says_how_to_end_it(host: Host, root: Root) -> None:
    output = root.dpkg("--purge", "quantum-nat")
    assert "nft delete table inet quantum" in output
    assert reaches_web(host)
    assert (root.path / STATE.relative_to("/")).is_dir()


def test_a_purge_without_containers_leaves_nothing(root: Root, plugin: Plugin, web: Container) -> None:
    plugin.call("DEL", plugin.configuration(prevResult=web.previous_result()), web)
    root.dpkg("--purge", "quantum-nat")
    assert not (root.path / "run/cni").exists()
    left = [path for top in ("usr", "etc", "opt") for path in (root.path / top).rglob("*quantum-nat*")]
    assert left == []
    assert (root.path / "opt").is_dir(), "the package did not make /opt, and must not remove it"


def test_a_purge_leaves_the_plugins_of_others(root: Root) -> None:
    other = root.path / "opt/cni/bin/bridge"
    other.write_text("another plugin")
    root.dpkg("--purge", "quantum-nat")
    assert [path for path in (root.path / "opt").rglob("*") if path.is_file()] == [other]
