"""packaging/release in a temporary project with dummy builders: what it refuses, and which files it makes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CHANGELOG = "# Changelog\n\n## Unreleased\n\n## 2.5.0 - 2031-01-31\n\n### Added\n\n- A thing.\n"
BUILT = {
    "tarball": "quantum-nat-2.5.0-linux-amd64.tar.gz",
    "deb": "quantum-nat_2.5.0-1_amd64.deb",
    "rpm": "quantum-nat-2.5.0-1.x86_64.rpm",
    "wheel": "cni_quantum_nat-2.5.0-py3-none-any.whl",
    "sbom": "quantum-nat-2.5.0.cdx.json",
    "image": "quantum-nat-2.5.0-image.tar",
    "chart": "quantum-nat-2.5.0.tgz",
}
PROVENANCE = "quantum-nat-2.5.0.provenance.json"


def git(project: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=A Developer", "-c", "user.email=developer@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=project, check=True, capture_output=True)


def write_script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\nset -eu\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    packaging = project / "packaging"
    packaging.mkdir(parents=True)
    for name in ("release", "setup.bash", "provenance.py", "requirements.lock", "runtime.lock"):
        shutil.copy(ROOT / "packaging" / name, packaging)
    for command, name in BUILT.items():
        write_script(packaging / command, f"mkdir -p dist; echo {command} >dist/{name}")
    write_script(packaging / "reproducible", "(cd dist && find . -maxdepth 1 -type f -exec sha256sum {} +)")
    (project / "cni_quantum_nat").mkdir()
    (project / "cni_quantum_nat" / "version.py").write_text('__version__ = "2.5.0"\n')
    (project / "CHANGELOG.md").write_text(CHANGELOG)
    (project / ".gitignore").write_text("dist/\n")
    git(project, "init", "--quiet")
    commit(project)
    return project


def commit(project: Path) -> None:
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "A change")


def release(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [project / "packaging" / "release"]
    return subprocess.run(
        line, cwd=project, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def refused(project: Path) -> str:
    """Return the error, and check that nothing was built."""
    done = release(project)
    assert done.returncode == 1
    assert not (project / "dist").exists()
    return done.stderr


def test_a_release_has_checksums_of_its_own_files_and_prints_the_tag_command(project: Path) -> None:
    (project / "dist").mkdir()
    (project / "dist" / "quantum-nat_2.4.0-1_amd64.deb").write_text("older\n")
    done = release(project)
    assert done.returncode == 0, done.stderr
    lines = (project / "dist" / "SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1]: line.split("  ")[0] for line in lines} == {
        name: hashlib.sha256(f"{command}\n".encode()).hexdigest() for command, name in BUILT.items()
    }
    assert "git tag --sign v2.5.0" in done.stdout


def test_uncommitted_changes_are_refused(project: Path) -> None:
    (project / "notes").write_text("mine\n")
    assert "not committed" in refused(project)


@pytest.mark.parametrize("heading", ["## Unreleased", "## 2.5.0", "## 2.5.0 - soon", "## 2x5.0 - 2031-01-31"])
def test_a_version_without_a_dated_section_is_refused(project: Path, heading: str) -> None:
    (project / "CHANGELOG.md").write_text(CHANGELOG.replace("## 2.5.0 - 2031-01-31", heading))
    commit(project)
    assert "## 2.5.0 - YYYY-MM-DD" in refused(project)


def test_a_version_whose_tag_is_another_commit_is_refused(project: Path) -> None:
    git(project, "tag", "v2.5.0")
    (project / "notes").write_text("mine\n")
    commit(project)
    assert "tagged already" in refused(project)


def test_a_release_can_be_built_from_its_tag(project: Path) -> None:
    git(project, "tag", "--annotate", "--message", "Quantum NAT 2.5.0", "v2.5.0")
    done = release(project)
    assert done.returncode == 0, done.stderr


def test_an_invalid_version_is_refused(project: Path) -> None:
    (project / "cni_quantum_nat" / "version.py").write_text('__version__ = "2.5.0.dev1"\n')
    commit(project)
    assert "no version to release: '2.5.0.dev1'" in refused(project)


def test_files_that_cannot_be_reproduced_get_no_checksums(project: Path) -> None:
    write_script(project / "packaging" / "reproducible", "echo '0  ./quantum-nat-2.5.0.cdx.json'")
    commit(project)
    done = release(project)
    assert done.returncode == 1
    assert "is not what packaging/reproducible made" in done.stderr
    assert not (project / "dist" / "SHA256SUMS").exists()


def test_the_provenance_names_each_file_and_the_commit(project: Path) -> None:
    for _ in range(2):  # the second finds the first one's
        done = release(project)
        assert done.returncode == 0, done.stderr
    said = json.loads((project / "dist" / PROVENANCE).read_text())
    sums = (project / "dist" / "SHA256SUMS").read_text().splitlines()
    assert [f"{file['digest']['sha256']}  {file['name']}" for file in said["subject"]] == sums
    assert (said["_type"], said["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True)
    (source, *_) = said["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert source["digest"] == {"gitCommit": head.stdout.strip()}


def test_a_key_signs_checksums_and_provenance(project: Path, tmp_path: Path) -> None:
    public, secret = tmp_path / "key.pub", tmp_path / "key"
    subprocess.run(["minisign", "-G", "-W", "-p", public, "-s", secret], check=True, capture_output=True)
    done = release(project, MINISIGN_KEY=str(secret))
    assert done.returncode == 0, done.stderr
    for name in ("SHA256SUMS", PROVENANCE):
        file = project / "dist" / name
        verify = ["minisign", "-V", "-p", str(public), "-m", str(file)]
        assert subprocess.run(verify, capture_output=True, check=False).returncode == 0, name
        file.write_text(f"{file.read_text()}\n")
        assert subprocess.run(verify, capture_output=True, check=False).returncode != 0, name


def test_a_signature_of_an_earlier_release_does_not_stay(project: Path, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    subprocess.run(["minisign", "-G", "-W", "-p", tmp_path / "key.pub", "-s", secret], check=True, capture_output=True)
    assert release(project, MINISIGN_KEY=str(secret)).returncode == 0
    assert release(project).returncode == 0
    assert not list((project / "dist").glob("*.minisig"))


def test_a_key_that_is_not_there_is_refused_before_anything_is_built(project: Path) -> None:
    (project / "dist").mkdir()
    done = release(project, MINISIGN_KEY="/nowhere/key")
    assert done.returncode == 1
    assert "there is no file /nowhere/key" in done.stderr
    assert not list((project / "dist").iterdir())
