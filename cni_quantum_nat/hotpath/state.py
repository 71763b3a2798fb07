"""The state directory: who owns what. Every change happens under one exclusive flock(2).

    /run/cni/quantum-nat/                          mode 0700, of the plugin's user; on tmpfs, as rules die with a reboot too
      lock                                         never removed: whoever waits for it holds the old inode
      pending                                      a file being written, before it is renamed to its place
      iptables                                     is there when a network has, or had, the iptables backend
      rebuilt                                      its time is when the rules were last made from the records
      claims/PROTOCOL                              how many attachments have each host port, see claims.py
      counters/NETWORK                             calls, failures and flows, see counters.py; has a lock of its own
      networks/NETWORK.json                        the configuration last validated, as given and as normalised
      attachments/CONTAINER/NETWORK:INTERFACE.json the record of one attachment

A network name, a container ID and an interface name contain no ":" and no "/", so the names are unambiguous.
"""

from __future__ import annotations

import posix
import time
from fcntl import LOCK_EX, LOCK_NB, flock

from .errors import IO_FAILURE, STATE_DAMAGED, TRY_AGAIN_LATER, CniError
from .jsontext import dumps, loads
from .model import Attachment, AttachmentId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

DEFAULT_DIRECTORY = "/run/cni/quantum-nat"
LOCK_TIMEOUT_S = 60
_POLL_S = 0.01
_SUFFIX = ".json"


class State:
    """The records in one directory, which is made when it is first locked."""

    __slots__ = ("_lock", "directory")

    def __init__(self, directory: str = DEFAULT_DIRECTORY) -> None:
        self.directory = directory
        self._lock = -1

    def lock(self) -> None:
        """Wait for the lock, at most LOCK_TIMEOUT_S; CniError(11) after that, CniError(5) when it can't be made."""
        try:
            self.make_directory()
            flags = posix.O_CREAT | posix.O_RDWR | posix.O_CLOEXEC | posix.O_NOFOLLOW
            self._lock = posix.open(f"{self.directory}/lock", flags, 0o600)
        except OSError as error:
            raise _io_failure("use the state directory", self.directory, error) from error
        try:
            flock(self._lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            self._wait_for_lock()

    def _wait_for_lock(self) -> None:
        from _signal import ITIMER_REAL, SIGALRM, setitimer, signal  # only when two calls meet

        def give_up(_number: int, _frame: object) -> None:
            raise TimeoutError

        try:
            previous = signal(SIGALRM, give_up)
        except ValueError:  # the main thread alone has alarms, and a program may use the Python API from another
            self._poll_for_lock()
            return
        setitimer(ITIMER_REAL, LOCK_TIMEOUT_S)
        try:
            flock(self._lock, LOCK_EX)
        except TimeoutError:
            raise self._held_too_long() from None
        finally:
            setitimer(ITIMER_REAL, 0)
            signal(SIGALRM, previous)

    def _poll_for_lock(self) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                flock(self._lock, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                time.sleep(_POLL_S)
            else:
                return
        raise self._held_too_long()

    def _held_too_long(self) -> CniError:
        return CniError(
            TRY_AGAIN_LATER,
            f"another process has held {self.directory}/lock for {LOCK_TIMEOUT_S} seconds",
            "fuser or lslocks names it.",
        )

    def unlock(self) -> None:
        """Let the next one in."""
        if self._lock >= 0:
            posix.close(self._lock)
            self._lock = -1

    def read(self, attachment_id: AttachmentId) -> Attachment | None:
        """Return the record, None when there is none; CniError(102) when it cannot be understood."""
        return self._read_record(self.path(attachment_id))

    def write(self, attachment: Attachment) -> None:
        """Write the record in one step."""
        container = f"{self.directory}/attachments/{attachment.id.container_id}"
        _make(f"{self.directory}/attachments")
        _make(container)
        self._replace(self.path(attachment.id), attachment.as_record())

    def remove(self, attachment_id: AttachmentId) -> None:
        """Remove the record; nothing happens when there is none."""
        try:
            posix.unlink(self.path(attachment_id))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _io_failure("remove the record", self.path(attachment_id), error) from error
        try:
            posix.rmdir(f"{self.directory}/attachments/{attachment_id.container_id}")
        except OSError:
            pass  # another attachment of the container is in it, or it is not there

    def siblings(self, attachment_id: AttachmentId) -> list[Attachment]:
        """Return the other attachments of the same container, those on record that can be read."""
        records = self._records_in(f"{self.directory}/attachments/{attachment_id.container_id}", [])
        return [record for record in records if record.id != attachment_id]

    def attachments(self, damaged: list[CniError]) -> Iterator[Attachment]:
        """Yield all records; one that cannot be read is told in `damaged`, and keeps nobody from the others.

        Grows with the number of containers: not for ADD, DEL or CHECK, but when they heal.
        """
        root = f"{self.directory}/attachments"
        for container in _listed(root):
            yield from self._records_in(f"{root}/{container}", damaged)

    def identities(self) -> Iterator[AttachmentId]:
        """Yield who has a record, by the names of the files: also those whose record cannot be read."""
        root = f"{self.directory}/attachments"
        for container in _listed(root):
            for name in _listed(f"{root}/{container}"):
                network, _, interface = name.removesuffix(_SUFFIX).partition(":")
                yield AttachmentId(network, container, interface)

    def exists(self) -> bool:
        """Whether anything was ever recorded here."""
        return "lock" in _listed(self.directory)

    def _records_in(self, directory: str, damaged: list[CniError]) -> Iterator[Attachment]:
        for name in sorted(_listed(directory)):
            try:
                record = self._read_record(f"{directory}/{name}")
            except CniError as error:
                damaged.append(error)
                continue
            if record is not None:
                yield record

    def read_configuration(self, network: str) -> dict[str, Any] | None:
        """Return what `write_configuration` kept, None when there is nothing to be used."""
        try:
            content = loads(_read(f"{self.directory}/networks/{network}{_SUFFIX}"))
        except (OSError, ValueError):
            return None  # it is a cache: the configuration is validated again
        return content if isinstance(content, dict) else None

    def write_configuration(self, network: str, content: dict[str, Any]) -> None:
        """Keep a validated configuration beside the records of its network."""
        _make(f"{self.directory}/networks")
        self._replace(f"{self.directory}/networks/{network}{_SUFFIX}", content)

    def note_iptables(self) -> None:
        """Remember that a record of the iptables backend is, or was, among the others."""
        if not self.has_iptables():
            self._replace(f"{self.directory}/iptables", {})

    def has_iptables(self) -> bool:
        """Whether there may be records of the iptables backend."""
        try:
            posix.stat(f"{self.directory}/iptables")
        except FileNotFoundError:
            return False
        return True

    def note_rebuild(self) -> None:
        """Remember that the kernel's rules, and their counters with them, were made anew from the records."""
        self._replace(f"{self.directory}/rebuilt", {})

    def rebuilt_at(self) -> float:
        """Say when that was last, in seconds since the epoch; 0 when never."""
        try:
            return posix.stat(f"{self.directory}/rebuilt").st_mtime
        except FileNotFoundError:
            return 0

    def path(self, attachment_id: AttachmentId) -> str:
        """Return where the record of an attachment is, or would be."""
        container = f"{self.directory}/attachments/{attachment_id.container_id}"
        return f"{container}/{attachment_id.network}:{attachment_id.interface}{_SUFFIX}"

    def _read_record(self, path: str) -> Attachment | None:
        try:
            content = loads(_read(path))
            if not isinstance(content, dict):
                raise TypeError("not an object")
            return Attachment.from_record(content)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _io_failure("read the record", path, error) from error
        except (ValueError, TypeError, KeyError) as error:
            raise CniError(
                STATE_DAMAGED,
                f"the record {path} is damaged: {error!r}",
                "Remove the file; the attachment's elements are removed by a GC of its network.",
            ) from error

    def _replace(self, path: str, content: dict[str, Any]) -> None:
        pending = f"{self.directory}/pending"
        flags = posix.O_CREAT | posix.O_WRONLY | posix.O_TRUNC | posix.O_CLOEXEC | posix.O_NOFOLLOW
        try:
            descriptor = posix.open(pending, flags, 0o600)
            try:
                _write_all(descriptor, dumps(content).encode())
            finally:
                posix.close(descriptor)
            posix.rename(pending, path)
        except OSError as error:
            raise _io_failure("write", path, error) from error

    def make_directory(self) -> None:
        """Make it where it is not there; PermissionError when it is not this user's own."""
        try:
            status = posix.lstat(self.directory)
        except FileNotFoundError:
            parts = self.directory.strip("/").split("/")
            for depth in range(1, len(parts)):
                _make("/" + "/".join(parts[:depth]), 0o755)
            _make(self.directory)
            status = posix.lstat(self.directory)
        if status.st_uid != posix.geteuid() or status.st_mode & 0o170000 != 0o040000:
            raise PermissionError(1, "not a directory of this user")
        if status.st_mode & 0o777 != 0o700:
            posix.chmod(self.directory, 0o700)


def _make(path: str, mode: int = 0o700) -> None:
    try:
        posix.mkdir(path, mode)
    except FileExistsError:
        pass
    except OSError as error:
        raise _io_failure("make the directory", path, error) from error


def _listed(directory: str) -> list[str]:
    try:
        return posix.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _io_failure("list", directory, error) from error


def _read(path: str) -> str:
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        chunks = []
        while chunk := posix.read(descriptor, 1 << 16):
            chunks.append(chunk)
    finally:
        posix.close(descriptor)
    return b"".join(chunks).decode()


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[posix.write(descriptor, content) :]


def _io_failure(what: str, path: str, error: OSError) -> CniError:
    hint = "It needs root." if isinstance(error, PermissionError) else ""
    return CniError(IO_FAILURE, f"cannot {what} {path}: {posix.strerror(error.errno or 0)}", hint)
