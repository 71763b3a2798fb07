"""What packaging/setup.bash does for the other scripts, in a project of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "packaging" / "setup.bash"
USER = 12345
COMMITTED = 1_900_000_000
RELEASED = 1_927_584_000  # 2031-01-31


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project, in a path with a space, without git."""
    project = tmp_path / "a project"
    (project / "packaging").mkdir(parents=True)
    shutil.copy(SETUP, project / "packaging")
    for name in ("requirements.lock", "tool.py", "tool.spec", "modules.txt", "build"):
        (project / "packaging" / name).touch()
    (project / "packaging/launcher").mkdir()
    (project / "pyproject.toml").touch()
    (project / "cni_quantum_nat/cni").mkdir(parents=True)
    (project / "cni_quantum_nat/cni/entry.py").write_text("pass\n")
    (project / "CHANGELOG.md").write_text(
        "# Changelog\n\n## Unreleased\n\n## 2.5.0 - 2031-01-31\n\n## 2.4.0 - 2030-01-31\n"
    )
    return project


def commit(project: Path) -> None:
    identity = ("-c", "user.name=A Developer", "-c", "user.email=developer@example.org")
    variables = {**os.environ, "GIT_COMMITTER_DATE": f"{COMMITTED} +0000"}
    for arguments in (("init", "--quiet"), ("add", "--all"), (*identity, "commit", "--quiet", "--message", "A change")):
        subprocess.run(["git", *arguments], cwd=project, env=variables, check=True)


def bash(project: Path, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script that has sourced setup.bash."""
    line = ["bash", "-euo", "pipefail", "-c", f"source packaging/setup.bash; {script}"]
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"} | variables
    environment |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    return subprocess.run(line, cwd=project, env=environment, capture_output=True, text=True, check=False)


def source_date(project: Path, **variables: str) -> int:
    done = bash(project, "source_date", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return int(done.stdout)


def test_what_is_built_bears_the_time_that_is_given_else_the_commits_else_the_releases(project: Path) -> None:
    assert source_date(project) == RELEASED
    commit(project)
    assert source_date(project) == COMMITTED
    assert source_date(project, SOURCE_DATE_EPOCH="7") == 7


def test_git_need_not_be_there(project: Path, tmp_path: Path) -> None:
    commit(project)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "dirname", "sed", "head", "date", "stat", "id", "find", "chown"):
        (programs / name).symlink_to(str(shutil.which(name)))
    done = bash(project, f'PATH="{programs}"; source_date')
    assert (done.stdout.strip(), done.stderr) == (str(RELEASED), "")


def test_git_works_in_another_users_checkout(project: Path) -> None:
    commit(project)
    give_away(project)
    assert source_date(project) == COMMITTED


def test_a_repository_around_an_unpacked_archive_says_nothing_of_it(project: Path) -> None:
    commit(project)
    archive = project / "unpacked"
    shutil.copytree(project, archive, ignore=shutil.ignore_patterns(".git", "unpacked"))
    assert source_date(archive) == RELEASED


def test_without_any_date_it_says_how_to_give_one(project: Path) -> None:
    (project / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n")
    done = bash(project, "date=$(source_date)")
    assert done.returncode == 1
    assert "export SOURCE_DATE_EPOCH=" in done.stderr


def test_what_tools_leave_beside_the_sources_is_no_change_of_them(project: Path) -> None:
    before = bash(project, "sources_checksum").stdout
    for name in (".ruff_cache/0.8/entry", "__pycache__/entry.cpython-311.pyc"):
        file = project / "cni_quantum_nat/cni" / name
        file.parent.mkdir(parents=True)
        file.touch()
    assert bash(project, "sources_checksum").stdout == before
    (project / "cni_quantum_nat/cni/entry.py").write_text("pass  # changed\n")
    assert bash(project, "sources_checksum").stdout != before


def give_away(project: Path) -> None:
    for path in (project, *project.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)


def test_what_root_makes_in_a_users_checkout_is_the_users(project: Path) -> None:
    give_away(project)
    done = bash(project, "mkdir -p .cache/made; touch .cache/made/file; ln -s /etc/passwd .cache/made/link; exit 3")
    assert done.returncode == 3
    assert [path for path in (project, *project.rglob("*")) if path.lstat().st_uid != USER] == []
    assert Path("/etc/passwd").stat().st_uid == 0


def test_what_is_to_happen_at_the_end_happens(project: Path, tmp_path: Path) -> None:
    left = tmp_path / "what is left"
    left.mkdir()
    assert bash(project, f'at_exit rm -r "{left}"; false').returncode == 1
    assert not left.exists()


def test_ctrl_c_ends_a_script_although_what_it_waits_for_ignores_it(project: Path) -> None:
    script = "source packaging/setup.bash; sh -c 'trap \"\" INT; touch begun; sleep 1'; touch went-on"
    # In case this runs in the background, where SIGINT is ignored.
    line = ["env", "--default-signal=INT", "bash", "-c", script]
    process = subprocess.Popen(line, cwd=project, start_new_session=True)
    while not (project / "begun").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert not (project / "went-on").exists()


def test_a_missing_package_is_named_to_a_user_with_the_command(project: Path) -> None:
    # As a user who is not root: id(1) says so.
    done = bash(project, "id() { echo 1000; }; apt_install quantum-nat-no-such-package")
    assert done.returncode == 1
    assert "sudo apt-get install quantum-nat-no-such-package" in done.stderr
