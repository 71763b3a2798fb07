"""The archive's install script, in a temporary root directory."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "packaging" / "install"
FILES = ("quantum-nat.8", "quantum-nat-reconcile.service", "completions/bash", "completions/zsh", "completions/fish")


PROGRAM = '#!/bin/sh\ncat "$(dirname "$(readlink -f "$0")")/_internal"\n'


def unpacked(directory: Path, version: str, script: str = PROGRAM) -> Path:
    """Return a directory like the archive's, with a program that prints its version from a file beside it."""
    program = directory / "program" / "quantum-nat"
    for path in (program, *(directory / name for name in FILES)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.name} {version}\n")
    program.write_text(script)
    program.chmod(0o755)
    (program.parent / "_internal").write_text(version)
    (directory / "VERSION").write_text(f"{version}\n")
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(directory)}\n" for path in paths]
    (directory / "SHA256SUMS").write_text("".join(sums))
    shutil.copy(SCRIPT, directory / "install")
    return directory


def install(source: Path, root: Path) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "DESTDIR": str(root)}
    return subprocess.run([source / "install"], env=variables, capture_output=True, text=True, check=False)


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
        with subprocess.Popen([source / "install"], env=variables, stdout=subprocess.DEVNULL) as upgrade:
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
    assert "install: files are damaged" in result.stderr
    assert not root.exists()
