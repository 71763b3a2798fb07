"""Whether a container's namespace exists: yes, no, or cannot be told from here."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cni_quantum_nat.kernel.namespaces import directory_of, identity, is_namespace, life, own_namespace
from cni_quantum_nat.model.attachments import ALIVE, CANNOT_TELL, GONE, NOWHERE

OWN = Path("/proc/self/ns/net")
OTHER_KIND = Path("/proc/self/ns/mnt")


def named(directory: Path, target: Path | None) -> str:
    """Return a path in the directory that names this namespace, or nothing."""
    path = directory / "netns"
    if target is not None:
        path.symlink_to(target)
    return str(path)


def test_the_recorded_namespace_under_its_path_is_alive(tmp_path: Path) -> None:
    path = named(tmp_path, OWN)
    assert life(path, own_namespace(), directory_of(path)) == ALIVE


def test_another_namespace_under_the_path_means_that_it_is_gone(tmp_path: Path) -> None:
    path = named(tmp_path, OTHER_KIND)
    assert identity(path) != own_namespace()
    assert life(path, own_namespace(), directory_of(path)) == GONE


def test_a_path_that_names_no_namespace_is_of_another_mount_namespace(tmp_path: Path) -> None:
    """The file that a namespace is mounted on is an empty one on tmpfs."""
    (tmp_path / "netns").touch()
    path = str(tmp_path / "netns")
    assert life(path, own_namespace(), directory_of(path)) == CANNOT_TELL


@pytest.mark.parametrize("recorded", [True, False], ids=["directory recorded", "not recorded, by 1.0.0"])
def test_a_path_that_is_gone_from_the_same_directory_means_that_it_is_gone(tmp_path: Path, recorded: bool) -> None:
    path = named(tmp_path, None)
    assert life(path, own_namespace(), directory_of(path) if recorded else NOWHERE) == GONE


def test_a_path_in_another_directory_or_none_tells_nothing(tmp_path: Path) -> None:
    path = named(tmp_path, None)
    assert life(path, own_namespace(), identity(str(tmp_path.parent)) or NOWHERE) == CANNOT_TELL
    assert life(str(tmp_path / "absent" / "netns"), own_namespace(), directory_of(path)) == CANNOT_TELL
    assert life(str(tmp_path / "absent" / "netns"), own_namespace(), NOWHERE) == CANNOT_TELL


def test_a_process_that_has_ended_is_gone_as_proc_stays() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    path = f"/proc/{child}/ns/net"
    recorded = directory_of(path)
    os.waitpid(child, 0)
    assert life(path, own_namespace(), recorded) == GONE


def test_what_is_a_namespace_is_known_by_its_device(tmp_path: Path) -> None:
    assert is_namespace(identity(str(OTHER_KIND)) or NOWHERE)
    assert not is_namespace(identity(str(tmp_path)) or NOWHERE)
    assert identity("/a\0b") is None


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EIO, errno.EINTR, errno.EACCES, errno.ELOOP])
def test_a_failure_to_look_is_no_sign_that_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = named(tmp_path, OWN)
    recorded = own_namespace(), directory_of(path)

    def fail(_path: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("cni_quantum_nat.kernel.namespaces.posix.stat", fail)
    assert life(path, *recorded) == CANNOT_TELL
    with pytest.raises(OSError, match=os.strerror(number)):
        own_namespace()
