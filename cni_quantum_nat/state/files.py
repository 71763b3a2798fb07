"""Read and write files in the state directory safely, even if another user has written there.

Only its owner can write to the directory, so foreign files are there by mistake, or from a time when its mode was different.
Nothing here follows a symbolic link, blocks on a pipe, or trusts a file that another user could have written.

A pod's start waits for this module.
"""

from __future__ import annotations

import posix

from ..model.errors import IO_FAILURE, CniError

_KIND, _DIRECTORY, _REGULAR, _LINK = 0o170000, 0o040000, 0o100000, 0o120000
_WRITABLE_BY_OTHERS = 0o022
_PRIVATE = 0o700
_MOST_BYTES = 1 << 26  # 10,000 port mappings take 2% of it


class Foreign(Exception):
    """The file or directory is not one that the plugin made; the text says why."""


def read_own(path: str) -> bytes:
    """Return the content of one of our files; raise Foreign if it is not ours, OSError if it cannot be read."""
    descriptor = open_own(path, posix.O_RDONLY)
    try:
        chunks = []
        while chunk := posix.read(descriptor, 1 << 16):
            chunks.append(chunk)
    finally:
        posix.close(descriptor)
    return b"".join(chunks)


def open_own(path: str, access: int) -> int:
    """Open one of our files; raise Foreign if it is not ours, OSError if it cannot be opened."""
    try:
        descriptor = posix.open(path, access | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK, 0o600)
    except OSError:
        if is_link(path):
            raise Foreign("it is a symbolic link") from None
        _check_file(posix.lstat(path))  # a directory, or a socket, cannot be opened
        raise
    try:
        _check_file(posix.fstat(descriptor))
    except BaseException:
        posix.close(descriptor)
        raise
    return descriptor


def _check_file(status: posix.stat_result) -> None:
    if status.st_mode & _KIND != _REGULAR:
        raise Foreign("it is not a regular file")
    if status.st_uid != posix.geteuid():
        raise Foreign(f"it belongs to user {status.st_uid}")
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise Foreign(f"others may write to it (mode {status.st_mode & 0o7777:04o})")
    if status.st_size > _MOST_BYTES:
        raise Foreign(f"it has {status.st_size} bytes")


def is_link(path: str) -> bool:
    """Return whether the path itself is a symbolic link."""
    try:
        return posix.lstat(path).st_mode & _KIND == _LINK
    except OSError:
        return False


def write_whole(pending: str, path: str, content: bytes) -> None:
    """Replace a file atomically: write `pending`, then rename it. OSError leaves no `pending` behind."""
    flags = posix.O_CREAT | posix.O_EXCL | posix.O_WRONLY | posix.O_CLOEXEC
    try:
        descriptor = posix.open(pending, flags, 0o600)
    except FileExistsError:  # left by a killed call, or a link or pipe that must not be written to
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
    """Remove a file if possible; a later attempt to use its name reports any failure."""
    try:
        posix.unlink(path)
    except OSError:
        pass


def list_directory(directory: str) -> list[str]:
    """Return the names in a directory; none if it is missing or not a directory. Raises CniError(5) if it cannot be listed."""
    try:
        return [] if is_link(directory) else posix.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise io_failure("list", directory, error) from error


def make_directory(path: str, mode: int = _PRIVATE) -> None:
    """Create a directory unless the name exists; raise CniError(5) if that fails."""
    try:
        posix.mkdir(path, mode)
    except FileExistsError:
        pass
    except OSError as error:
        raise io_failure("create the directory", path, error) from error


def check_directory(path: str) -> int | None:
    """Return the mode of one of our directories, None if it is missing; raise Foreign if it is not ours, CniError(5) on failure."""
    try:
        status = posix.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise io_failure("inspect", path, error) from error
    if status.st_mode & _KIND != _DIRECTORY:
        raise Foreign(f"it is {'a symbolic link' if status.st_mode & _KIND == _LINK else 'a file'}, not a directory")
    if status.st_uid != posix.geteuid():
        raise Foreign(f"it belongs to user {status.st_uid}, not to {posix.geteuid()}")
    return status.st_mode & 0o7777


def make_parents(path: str) -> None:
    """Create the parent directories of a path, with mode 0755."""
    parts = path.strip("/").split("/")
    for depth in range(1, len(parts)):
        make_directory("/" + "/".join(parts[:depth]), 0o755)


def io_failure(what: str, path: str, error: OSError) -> CniError:
    """Return a CniError(5): cannot `what` this path."""
    hint = "Run it as root." if isinstance(error, PermissionError) else ""
    return CniError(IO_FAILURE, f"cannot {what} {path}: {posix.strerror(error.errno or 0)}", hint)
