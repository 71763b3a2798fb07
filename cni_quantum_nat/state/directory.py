"""The state directory: who owns what. Every change happens under one exclusive flock(2).

    /run/cni/quantum-nat/                          mode 0700, of the plugin's user; on tmpfs, as rules die with a reboot too
      lock                                         never removed: a waiting process would lock the old inode
      pending                                      a file being written, before it is renamed to its place
      numbers                                      the last sequence number, and by protocol the port allocated last
      iptables                                     exists if a network uses, or used, the iptables backend
      rebuilt                                      its mtime is when the rules were last rebuilt from the records
      tables/INODE                                 fingerprint of table inet quantum in the network namespace with this inode
      counters/NETWORK                             calls, failures and connections, see counters.py; has a lock of its own
      networks/NETWORK.json                        the configuration last validated, as given and as normalised
      attachments/CONTAINER/NETWORK:INTERFACE.json the record of one attachment, see record.py
      reload/NETWORK:CONTAINER:INTERFACE.json      the last record of an attachment with live ports, for an ADD right after its DEL

A network name, a container ID and an interface name contain no ":" and no "/", so the names are unambiguous.
A pod's start waits for this module.
"""

from __future__ import annotations

import posix
import time

from ..kernel.namespaces import own_namespace
from ..model.attachments import AttachmentId
from ..model.errors import IO_FAILURE, STATE_DAMAGED, CniError
from ..model.json_text import dumps, loads
from .files import (
    Foreign,
    check_directory,
    io_failure,
    list_directory,
    make_directory,
    make_parents,
    read_own,
    remove_file,
    write_whole,
)
from .lock import Lock
from .numbers import Numbers
from .record import read_record, write_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ..model.attachments import Attachment

DEFAULT_DIRECTORY = "/run/cni/quantum-nat"
_PARTS = ("attachments", "networks", "counters", "tables")
_CLAIMS = "claims"  # from 1.0.0, which would trust it after a downgrade: it is removed
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_SUFFIX = ".json"
_FORGOTTEN_AFTER_S = 86400
_RELOAD = "/reload"
_RELOADED_WITHIN_S = 60  # longer than an ADD waits for the lock


class State:
    """The records in one directory, which is created when it is first locked."""

    __slots__ = ("_boot_id", "_lock", "directory")

    def __init__(self, directory: str = DEFAULT_DIRECTORY, lock: type[Lock] = Lock) -> None:
        """Use a directory. lock: the kind of lock, see program_lock.py."""
        self.directory = directory
        self._lock = lock(f"{directory}/lock")
        self._boot_id = ""

    def lock(self) -> None:
        """Wait for the lock. CniError(11) if that takes too long, CniError(5) if the directory cannot be used."""
        self.make_directory()
        try:
            try:
                self._lock.acquire()
            except FileNotFoundError:  # it was removed a moment ago
                self.make_directory()
                self._lock.acquire()
        except OSError as error:
            raise io_failure("lock the state directory", self.directory, error) from error

    def unlock(self) -> None:
        """Release the lock."""
        self._lock.release()

    def make_directory(self) -> None:
        """Create the directory if it is missing. CniError(5) if it, or a part of it, is not a directory of this user."""
        try:
            mode = self._check("")
            if mode is None:
                make_parents(self.directory)
                make_directory(self.directory)
                mode = self._check("")
            if mode != 0o700:
                self._require_own()
                posix.chmod(self.directory, 0o700)
        except OSError as error:
            raise io_failure("use the state directory", self.directory, error) from error
        for part in _PARTS:
            self._check(f"/{part}")

    def _require_own(self) -> None:
        """Refuse a directory that is somebody else's, before its mode is changed."""
        names = list_directory(self.directory)
        if names and "lock" not in names:
            raise CniError(
                IO_FAILURE,
                f"cannot use the state directory {self.directory}: it has files of others, {min(names)!r} for one",
                "Give stateDir a directory of its own.",
            )

    def check(self) -> None:
        """Check that the directory and its parts, if they exist, are directories of this user. CniError(5) if one is not."""
        for part in ("", *(f"/{name}" for name in _PARTS)):
            self._check(part)

    def _check(self, part: str) -> int | None:
        path = f"{self.directory}{part}"
        try:
            return check_directory(path)
        except Foreign as why:
            raise CniError(
                IO_FAILURE,
                f"cannot use the state directory {path}: {why}",
                "Move it out of the way; it is created again, and ADD of each container fills it.",
            ) from why

    def read(self, attachment_id: AttachmentId) -> Attachment | None:
        """Return the record, of any boot; None if there is none. CniError(102) if it is damaged, (108) if it is newer."""
        container = self._container(attachment_id.container_id)
        try:
            check_directory(container)
            return self._read_record(self.path(attachment_id), attachment_id)
        except Foreign as why:
            raise _damaged(container, why) from why

    def has_record(self, attachment_id: AttachmentId) -> bool:
        """Whether there is a record, readable or not."""
        try:
            posix.lstat(self.path(attachment_id))
        except OSError:
            return False
        return True

    def write(self, attachment: Attachment) -> None:
        """Write the record in one step."""
        attachment.boot_id = self.boot_id
        content = write_record(attachment, self.boot_id)
        container = self._container(attachment.id.container_id)
        try:
            posix.mkdir(container, 0o700)
        except FileExistsError:
            self._clear_the_place(container)
        except OSError:
            make_directory(f"{self.directory}/attachments")
            make_directory(container)
        self._replace(self.path(attachment.id), content)

    def _clear_the_place(self, container: str) -> None:
        """Remove whatever is in the place of a container's directory. CniError(102) if it cannot be removed."""
        try:
            check_directory(container)
        except Foreign as why:
            self._remove_foreign(container, why)
            make_directory(container)

    def _remove_foreign(self, container: str, why: Foreign) -> None:
        try:
            posix.unlink(container)
        except OSError as error:
            raise _damaged(container, why) from error

    def remove(self, attachment_id: AttachmentId) -> None:
        """Remove the record, if there is one, and the unfinished file of a killed call."""
        remove_file(f"{self.directory}/pending")
        container, path = self._container(attachment_id.container_id), self.path(attachment_id)
        try:
            check_directory(container)
            posix.unlink(path)
        except FileNotFoundError:
            pass
        except Foreign as why:
            self._remove_foreign(container, why)
        except OSError as error:
            raise io_failure("remove the record", path, error) from error
        try:
            posix.rmdir(container)
        except OSError:
            pass  # another attachment of the container is in it, or it does not exist

    def set_aside(self, attachment: Attachment) -> None:
        """Keep a record that is about to be removed, for a runtime that deletes and adds a running container to reload its network."""
        make_directory(f"{self.directory}{_RELOAD}")
        self._check(_RELOAD)
        self._drop_old_reloads()
        self._replace(self._reload_path(attachment.id), write_record(attachment, self.boot_id))

    def read_set_aside(self, attachment_id: AttachmentId) -> Attachment | None:
        """Return the record that was set aside a moment ago, None if there is none. CniError(102) or (108) if it cannot be read."""
        if self._check(_RELOAD) is None:
            return None
        self._drop_old_reloads()
        return self._read_record(self._reload_path(attachment_id), attachment_id)

    def forget_set_aside(self, attachment_id: AttachmentId) -> None:
        """Remove the record that was set aside."""
        remove_file(self._reload_path(attachment_id))

    def _drop_old_reloads(self) -> None:
        now = time.time()
        for name in list_directory(f"{self.directory}{_RELOAD}"):
            modified_at = self._modified_at(f"reload/{name}")
            if modified_at is not None and not 0 <= now - modified_at < _RELOADED_WITHIN_S:
                remove_file(f"{self.directory}{_RELOAD}/{name}")

    def _reload_path(self, attachment_id: AttachmentId) -> str:
        return f"{self.directory}{_RELOAD}/{attachment_id.owner.replace('/', ':')}{_SUFFIX}"

    def siblings(self, attachment_id: AttachmentId) -> list[Attachment]:
        """Return the other attachments of the same container that have a readable record, of any boot."""
        own = self.path(attachment_id).rpartition("/")[2]
        return list(self._records_of(attachment_id.container_id, [], skipped=own))

    @property
    def realm(self) -> str:
        """Marks the rules of this state directory: empty for the usual one, else ":" and four hexadecimal digits."""
        if self.directory == DEFAULT_DIRECTORY:
            return ""
        checksum = 0
        for byte in self.directory.encode():
            checksum = (checksum * 31 + byte) & 0xFFFF
        return f":{checksum:04x}"

    @property
    def option(self) -> str:
        """The command-line option for this directory, with a space after it; empty for the usual one."""
        return "" if self.directory == DEFAULT_DIRECTORY else f"--state-dir {self.directory} "

    def attachments(self, damaged: list[CniError]) -> Iterator[Attachment]:
        """Yield all records, of any boot. For a damaged or newer record, add the error to `damaged` and continue.

        CniError(5) if the system fails to read a record: a caller that took the rest for all would remove its rules.

        The cost grows with the number of containers: not for ADD, DEL or CHECK, except when they heal.
        """
        for container in list_directory(f"{self.directory}/attachments"):
            yield from self._records_of(container, damaged)

    def identities(self) -> Iterator[AttachmentId]:
        """Yield who has a record, by file name, so unreadable records are included."""
        for container in list_directory(f"{self.directory}/attachments"):
            for name in list_directory(self._container(container)):
                identity = _identity(container, name)
                if identity is not None:
                    yield identity

    def exists(self) -> bool:
        """Whether anything was ever recorded here."""
        return "lock" in list_directory(self.directory)

    def _records_of(self, container: str, damaged: list[CniError], *, skipped: str = "") -> Iterator[Attachment]:
        directory = self._container(container)
        try:
            check_directory(directory)
        except Foreign as why:
            damaged.append(_damaged(directory, why))
            return
        for name in sorted(list_directory(directory)):
            if name == skipped:
                continue
            try:
                record = self._read_record(f"{directory}/{name}", _identity(container, name))
            except CniError as error:
                if error.code == IO_FAILURE:
                    raise
                damaged.append(error)
            else:
                if record is not None:
                    yield record

    def read_configuration(self, network: str) -> dict[str, Any] | None:
        """Return what `write_configuration` kept, None if there is nothing usable."""
        try:
            content = loads(read_own(f"{self.directory}/networks/{network}{_SUFFIX}").decode())
        except (OSError, ValueError, Foreign):
            return None  # it is a cache: the configuration is validated again
        if isinstance(content, dict) and isinstance(content.get("normalised"), dict):
            return content
        return None

    def write_configuration(self, network: str, content: dict[str, Any]) -> None:
        """Keep a validated configuration beside the records of its network."""
        make_directory(f"{self.directory}/networks")
        self._replace(f"{self.directory}/networks/{network}{_SUFFIX}", content)

    def forget_networks(self) -> None:
        """Remove the configuration and the counters of networks that have no record and were not heard of for a day."""
        self._drop_old_reloads()
        known = {identity.network for identity in self.identities()}
        deadline = time.time() - _FORGOTTEN_AFTER_S
        for directory, suffix in ((f"{self.directory}/networks", _SUFFIX), (f"{self.directory}/counters", "")):
            for name in list_directory(directory):
                modified_at = self._modified_at(f"{directory.rpartition('/')[2]}/{name}")
                if name.removesuffix(suffix) not in known and modified_at is not None and modified_at < deadline:
                    remove_file(f"{directory}/{name}")

    def note_iptables(self) -> None:
        """Remember that a record of the iptables backend is, or was, among the others."""
        if not self.has_iptables():
            self._replace(f"{self.directory}/iptables", {})

    def has_iptables(self) -> bool:
        """Whether there may be records of the iptables backend."""
        return self._modified_at("iptables") is not None

    def note_rebuild(self) -> None:
        """Remember that the kernel's rules, and so their counters, were rebuilt from the records."""
        self._replace(f"{self.directory}/rebuilt", {})

    def rebuilt_at(self) -> float:
        """Return when that was, in seconds since the epoch; 0 for never."""
        return self._modified_at("rebuilt") or 0

    def _modified_at(self, name: str) -> float | None:
        path = f"{self.directory}/{name}"
        try:
            return posix.lstat(path).st_mtime
        except FileNotFoundError:
            return None
        except OSError as error:
            raise io_failure("look for", path, error) from error

    def path(self, attachment_id: AttachmentId) -> str:
        """Return the path of an attachment's record."""
        container = self._container(attachment_id.container_id)
        return f"{container}/{attachment_id.network}:{attachment_id.interface}{_SUFFIX}"

    def _container(self, container_id: str) -> str:
        return f"{self.directory}/attachments/{container_id}"

    def _read_record(self, path: str, identity: AttachmentId | None) -> Attachment | None:
        try:
            if identity is None:
                raise Foreign("its name is not that of a record")
            return read_record(loads(read_own(path).decode()), identity, path)
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise _damaged(path.rpartition("/")[0], Foreign("it is a file")) from error
        except OSError as error:
            raise io_failure("read the record", path, error) from error
        except (ValueError, TypeError, KeyError, AttributeError, Foreign) as error:
            raise _damaged(path, error) from error

    @property
    def boot_id(self) -> str:
        """The name of this boot of the kernel."""
        if not self._boot_id:
            try:
                descriptor = posix.open(_BOOT_ID, posix.O_RDONLY | posix.O_CLOEXEC)
                try:
                    self._boot_id = posix.read(descriptor, 64).decode().strip()
                finally:
                    posix.close(descriptor)
            except OSError as error:
                raise io_failure("read", _BOOT_ID, error) from error
        return self._boot_id

    def numbers(self) -> Numbers:
        """Return the numbers that continue from record to record."""
        return Numbers(f"{self.directory}/numbers", self._count_records)

    def _count_records(self) -> int:
        """Return the highest sequence number on record, for when `numbers` is lost or new. Also remove what 1.0.0 left."""
        claims = f"{self.directory}/{_CLAIMS}"
        for name in list_directory(claims):
            remove_file(f"{claims}/{name}")
        try:
            posix.rmdir(claims)
        except OSError:
            pass  # it did not exist
        return max((attachment.sequence for attachment in self.attachments([])), default=0)

    def read_fingerprint(self) -> bytes:
        """Return the fingerprint of the table in this network namespace when it was last built; empty if unknown."""
        try:
            return read_own(self._fingerprint_path())
        except (OSError, Foreign):
            return b""

    def write_fingerprint(self, fingerprint: bytes) -> None:
        """Keep the fingerprint of the table in this network namespace."""
        make_directory(f"{self.directory}/tables")
        self._replace_bytes(self._fingerprint_path(), fingerprint)

    def _fingerprint_path(self) -> str:
        return f"{self.directory}/tables/{own_namespace()[1]}"

    def _replace(self, path: str, content: dict[str, Any]) -> None:
        self._replace_bytes(path, dumps(content).encode())

    def _replace_bytes(self, path: str, content: bytes) -> None:
        try:
            write_whole(f"{self.directory}/pending", path, content)
        except OSError as error:
            raise io_failure("write", path, error) from error


def _identity(container: str, name: str) -> AttachmentId | None:
    """Parse the name of a record's file; None if it is not one."""
    network, colon, interface = name.removesuffix(_SUFFIX).partition(":")
    if not (network and colon and interface and name.endswith(_SUFFIX)):
        return None
    return AttachmentId(network, container, interface)


def _damaged(path: str, why: Exception) -> CniError:
    reason = str(why) if isinstance(why, Foreign) else repr(why)
    return CniError(
        STATE_DAMAGED,
        f"the record {path} is damaged: {reason}",
        "Remove the file; the attachment's elements are removed by a GC of its network.",
    )
