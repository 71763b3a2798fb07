"""The archive's install script, in a temporary root directory."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "packaging"
UNITS = ("quantum-nat-reconcile.service", "quantum-nat-gc.service", "quantum-nat-gc.timer", "99-quantum-nat.conf")
FILES = ("quantum-nat.8", *UNITS, "completions/bash", "completions/zsh", "completions/fish")

PROGRAM = '#!/bin/sh\ncat "$(dirname "$(readlink -f "$0")")/_internal"\n'


def unpacked(directory: Path, version: str, program_text: str = PROGRAM) -> Path:
    """Return a directory like the archive's, with a program that prints its version from a file beside it."""
    program = directory / "program" / "quantum-nat"
    for path in (program, *(directory / name for name in FILES)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.name} {version}\n")
    program.write_text(program_text)
    program.chmod(0o755)
    (program.parent / "_internal").write_text(version)
    (directory / "VERSION").write_text(f"{version}\n")
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(directory)}\n" for path in paths]
    (directory / "SHA256SUMS").write_text("".join(sums))
    for name in ("install", "uninstall"):
        shutil.copy(SCRIPTS / name, directory / name)
    return directory


@pytest.fixture(autouse=True, params=["coreutils", "busybox"])
def _tools(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the scripts use busybox alone, as a host with musl has it, or what this host has."""
    if request.param == "busybox":
        applets = tmp_path / "applets"
        applets.mkdir()
        subprocess.run(["busybox", "--install", "-s", applets], check=True)
        monkeypatch.setenv("PATH", str(applets))


def script(path: Path) -> list[str]:
    """Return how a script is run: by the sh that comes first."""
    return [str(shutil.which("sh")), str(path)]


def install(source: Path, root: Path) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "DESTDIR": str(root)}
    return subprocess.run(script(source / "install"), env=variables, capture_output=True, text=True, check=False)


def uninstall(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [*script(root / "usr/lib/quantum-nat/uninstall"), *arguments]
    variables = {**os.environ, "DESTDIR": str(root)}
    return subprocess.run(line, env=variables, capture_output=True, text=True, check=False)


def files_in(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or path.is_file())


def version_of(root: Path) -> str:
    return subprocess.run([root / "usr/lib/quantum-nat/quantum-nat"], capture_output=True, text=True, check=True).stdout


def test_an_upgrade_and_a_downgrade_change_what_runs(tmp_path: Path) -> None:
    first, second, root = unpacked(tmp_path / "1", "1.0"), unpacked(tmp_path / "2", "2.0"), tmp_path / "root"
    for source, version in ((first, "1.0"), (second, "2.0"), (first, "1.0")):
        assert install(source, root).returncode == 0
        assert version_of(root) == version


def test_the_plugin_runs_at_every_moment_of_upgrades(tmp_path: Path) -> None:
    sources, root = [unpacked(tmp_path / version, version) for version in ("1.0", "2.0")], tmp_path / "root"
    install(sources[0], root)
    for source in (*sources[::-1], *sources[::-1]):
        variables = {**os.environ, "DESTDIR": str(root)}
        with subprocess.Popen(script(source / "install"), env=variables, stdout=subprocess.DEVNULL) as upgrade:
            while upgrade.poll() is None:
                assert version_of(root) in {"1.0", "2.0"}
        assert upgrade.returncode == 0


def test_a_running_call_keeps_the_version_before_and_no_older_one(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for version in ("1.0", "2.0", "3.0"):
        install(unpacked(tmp_path / version, version), root)
    kept = sorted(path.name.split("-")[0] for path in (root / "usr/lib/quantum-nat/versions").iterdir())
    assert kept == ["2.0", "3.0"]


def test_a_damaged_archive_changes_nothing(tmp_path: Path) -> None:
    source, root = unpacked(tmp_path / "1", "1.0"), tmp_path / "root"
    (source / "program" / "_internal").write_text("half")
    result = install(source, root)
    assert result.returncode == 1
    assert "install: damaged: ./program/_internal. Unpack the archive again" in result.stderr
    assert not root.exists()


def test_an_archive_without_checksums_changes_nothing(tmp_path: Path) -> None:
    source, root = unpacked(tmp_path / "1", "1.0"), tmp_path / "root"
    (source / "SHA256SUMS").unlink()
    assert "SHA256SUMS is missing" in install(source, root).stderr
    assert not root.exists()


def test_uninstall_removes_what_install_placed_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "opt/cni/bin").mkdir(parents=True)
    (root / "opt/cni/bin/bridge").write_text("another plugin")
    for version in ("1.0", "2.0"):
        assert install(unpacked(tmp_path / version, version), root).returncode == 0
    assert len(files_in(root)) > len(FILES)
    done = uninstall(root)
    assert done.returncode == 0, done.stderr
    assert files_in(root) == ["opt/cni/bin/bridge"]
    assert not (root / "usr/lib/quantum-nat").exists()


def test_uninstall_from_the_archive_says_which_one_to_run(tmp_path: Path) -> None:
    source, root = unpacked(tmp_path / "1", "1.0"), tmp_path / "root"
    install(source, root)
    before = files_in(root)
    done = subprocess.run(script(source / "uninstall"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "/usr/lib/quantum-nat/uninstall" in done.stderr
    assert files_in(root) == before


def test_uninstall_leaves_a_program_that_took_a_links_place(tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(unpacked(tmp_path / "1", "1.0"), root)
    link = root / "usr/lib/cni/quantum-nat"
    link.unlink()
    link.symlink_to("/usr/local/bin/other")
    assert "/usr/lib/cni/quantum-nat" in uninstall(root).stdout
    assert files_in(root) == ["usr/lib/cni/quantum-nat"]


@pytest.mark.parametrize(
    ("file", "content", "cure"),
    [
        ("run/cni/quantum-nat/attachments/net/web-eth0.json", "{}", "--force"),
        ("etc/cni/net.d/10-net.conflist", '{"plugins": [{"type": "quantum-nat"}]}', "quantum-nat chain --undo"),
    ],
)
def test_uninstall_is_refused_while_the_plugin_is_in_use(tmp_path: Path, file: str, content: str, cure: str) -> None:
    root = tmp_path / "root"
    install(unpacked(tmp_path / "1", "1.0"), root)
    user = root / file
    user.parent.mkdir(parents=True)
    user.write_text(content)
    before = files_in(root)
    done = uninstall(root)
    assert done.returncode == 1
    assert cure in done.stderr
    assert files_in(root) == before
    assert uninstall(root, "--force").returncode == 0
    assert files_in(root) == [file]


def test_uninstall_removes_the_records_that_nobody_needs(tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(unpacked(tmp_path / "1", "1.0"), root)
    state = root / "run/cni/quantum-nat"
    (state / "attachments").mkdir(parents=True)
    (state / "lock").touch()
    assert uninstall(root).returncode == 0
    assert not state.exists()
