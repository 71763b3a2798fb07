"""Files of the state directory, read and written so that nobody leads us elsewhere.

The directory is its user's alone, so whatever else is found in it was put there by mistake, or while its mode was another
one. Nothing here follows a symbolic link, waits at a pipe, or believes what somebody else could have written.
"""

from __future__ import annotations

import posix

from ..model.errors import IO_FAILURE, CniError

_KIND, _DIRECTORY, _REGULAR, _LINK = 0o170000, 0o040000, 0o100000, 0o120000
_WRITABLE_BY_OTHERS = 0o022
_PRIVATE = 0o700
_MOST_BYTES = 1 << 26  # 10,000 port mappings take a fiftieth of it


class Foreign(Exception):
    """What is there is not what we made; the text says why."""


def read_own(path: str) -> bytes:
    """Return the content of a file of ours; Foreign when it is something else, OSError when it cannot be read."""
    descriptor = open_own(path, posix.O_RDONLY)
    try:
        chunks = []
        while chunk := posix.read(descriptor, 1 << 16):
            chunks.append(chunk)
    finally:
        posix.close(descriptor)
    return b"".join(chunks)


def open_own(path: str, access: int, size: int | None = None) -> int:
    """Open a file of ours, of this size if one is given; Foreign when it is something else, OSError when it cannot be had."""
    try:
        descriptor = posix.open(path, access | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK)
    except OSError:
        if is_link(path):
            raise Foreign("it is a symbolic link") from None
        _check_file(posix.lstat(path), size)  # a directory, or a socket, cannot be opened
        raise
    try:
        _check_file(posix.fstat(descriptor), size)
    except BaseException:
        posix.close(descriptor)
        raise
    return descriptor


def _check_file(status: posix.stat_result, size: int | None) -> None:
    if status.st_mode & _KIND != _REGULAR:
        raise Foreign("it is not a regular file")
    if status.st_uid != posix.geteuid():
        raise Foreign(f"it belongs to user {status.st_uid}")
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise Foreign(f"others may write to it (mode {status.st_mode & 0o7777:04o})")
    if status.st_size > _MOST_BYTES or status.st_size != (status.st_size if size is None else size):
        raise Foreign(f"it has {status.st_size} bytes")


def is_link(path: str) -> bool:
    """Whether the path itself is a symbolic link."""
    try:
        return posix.lstat(path).st_mode & _KIND == _LINK
    except OSError:
        return False


def write_whole(pending: str, path: str, content: bytes) -> None:
    """Put a file in its place in one step: written as `pending`, then renamed; OSError leaves no `pending`."""
    flags = posix.O_CREAT | posix.O_EXCL | posix.O_WRONLY | posix.O_CLOEXEC
    try:
        descriptor = posix.open(pending, flags, 0o600)
    except FileExistsError:  # of a call that was killed; or it is no file at all, and must not be written through
        posix.unlink(pending)
        descriptor = posix.open(pending, flags, 0o600)
    try:
        try:
            while content:
                content = content[posix.write(descriptor, content) :]
        finally:
            posix.close(descriptor)
        posix.rename(pending, path)
    except OSError:
        remove_file(pending)
        raise


def remove_file(path: str) -> None:
    """Remove what can be removed; whoever needs the place finds out otherwise."""
    try:
        posix.unlink(path)
    except OSError:
        pass


def list_directory(directory: str) -> list[str]:
    """Return the names in it; none where it is not there or is no directory; CniError(5) when it cannot be listed."""
    try:
        return [] if is_link(directory) else posix.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise io_failure("list", directory, error) from error


def make_directory(path: str, mode: int = _PRIVATE) -> None:
    """Make a directory; nothing happens where something is already. CniError(5)."""
    try:
        posix.mkdir(path, mode)
    except FileExistsError:
        pass
    except OSError as error:
        raise io_failure("make the directory", path, error) from error


def check_directory(path: str) -> int | None:
    """Return the mode of a directory of ours, None where there is nothing; Foreign when it is something else, or CniError(5)."""
    try:
        status = posix.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise io_failure("look at", path, error) from error
    if status.st_mode & _KIND != _DIRECTORY:
        raise Foreign(f"it is {'a symbolic link' if status.st_mode & _KIND == _LINK else 'a file'}, not a directory")
    if status.st_uid != posix.geteuid():
        raise Foreign(f"it belongs to user {status.st_uid}, not to {posix.geteuid()}")
    return status.st_mode & 0o7777


def make_parents(path: str) -> None:
    """Make the directories above a path, which anybody may enter."""
    parts = path.strip("/").split("/")
    for depth in range(1, len(parts)):
        make_directory("/" + "/".join(parts[:depth]), 0o755)


def io_failure(what: str, path: str, error: OSError) -> CniError:
    """Return what a runtime is told."""
    hint = "It needs root." if isinstance(error, PermissionError) else ""
    return CniError(IO_FAILURE, f"cannot {what} {path}: {posix.strerror(error.errno or 0)}", hint)
