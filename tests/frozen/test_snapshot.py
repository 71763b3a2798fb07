"""The snapshot that the plugin goes on from: nothing of the process that took it is in it, and what it does is what an ordinary start does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .release import ORDINARY_START, PROGRAM

if TYPE_CHECKING:
    from .release import Release

pytestmark = pytest.mark.frozen

PROJECT = Path(__file__).parents[2]
VERSION = {"CNI_COMMAND": "VERSION"}


def test_it_is_what_the_program_itself_writes_wherever_it_is(tmp_path: Path) -> None:
    """The build's snapshot, and one that is taken now, in another directory, by the same program without one, are the same bytes."""
    copy = tmp_path / "plugin"
    copy.write_bytes(ORDINARY_START.read_bytes())
    copy.chmod(0o755)
    assert copy.read_bytes() != PROGRAM.read_bytes()
    subprocess.run([sys.executable, PROJECT / "packaging/launcher/snapshot.py", copy], check=True)
    assert copy.read_bytes() == PROGRAM.read_bytes()


def test_nothing_of_the_machine_that_built_it_is_in_it() -> None:
    content = PROGRAM.read_bytes()
    for place in (str(PROJECT), str(Path.home())):
        assert place.encode() not in content


def test_two_processes_have_another_stack_and_heap_and_the_same_answer(release: Release) -> None:
    answers = {release.run(request="{}", **VERSION).stdout for _ in range(20)}
    assert len(answers) == 1


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere", "PYTHONSTARTUP": "/nowhere", "PYTHONINSPECT": "1"},
        {
            "PYTHONHASHSEED": "abc",
            "PYTHONMALLOC": "debug",
            "PYTHONUTF8": "0",
            "PYTHONVERBOSE": "1",
            "PYTHONTRACEMALLOC": "5",
        },
        {
            "LANG": "tr_TR.UTF-8",
            "LC_ALL": "ja_JP.eucJP",
            "TZ": "Asia/Tokyo",
            "MALLOC_ARENA_MAX": "1",
            "GLIBC_TUNABLES": "x=y",
        },
        {"NOT_UTF_8": "\udcff", "EMPTY": "", "TWO": "a=b=c"},
    ],
)
def test_the_environment_changes_nothing(release: Release, variables: dict[str, str]) -> None:
    plain = release.run(request="{}", **VERSION)
    assert (plain.returncode, plain.stderr) == (0, "")
    changed = release.run(request="{}", **VERSION, **variables)
    assert (changed.returncode, changed.stdout, changed.stderr) == (0, plain.stdout, "")


def test_the_environment_is_that_of_the_call(release: Release) -> None:
    refused = release.run(request="{}", CNI_COMMAND="NONSENSE")
    assert "CNI_COMMAND is 'NONSENSE'" in refused.stdout


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_descriptors_are_no_reason_to_crash(release: Release, closed: str) -> None:
    command = f"CNI_COMMAND=VERSION exec {release.program} {closed}"
    done = subprocess.run(["sh", "-c", command], input="{}", capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done


def test_it_lives_with_little_memory(release: Release) -> None:
    """Where the kernel gives no memory beyond a limit, the program works within it or is not started; it does not go on with half of it."""
    for limit_kib in (1_000, 8_000, 12_000, 14_000, 16_000, 32_000):
        command = f"ulimit -v {limit_kib}; CNI_COMMAND=VERSION exec {release.program}"
        done = subprocess.run(["sh", "-c", command], input="{}", capture_output=True, text=True, check=False)
        if done.returncode == 0:
            assert "supportedVersions" in done.stdout
        else:
            assert "supportedVersions" not in done.stdout
    assert done.returncode == 0
