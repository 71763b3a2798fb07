"""Counters of a network, across calls, in one file of constant size.

    counters/NETWORK    8 bytes that identify the layout, then cells of 8 bytes in the host's byte order:
                        for each backend and verb: calls, microseconds, a cell for each duration bucket and error code
                        for each source of connection counts and type of NAT: gone, seen (see connections/counts.py)
                        for each source: the same of packets that allowFrom refused

A change reads and writes the whole file, 3 KiB, under an flock(2) on the file itself, so that a call that could not get the
state directory's lock is counted too. A file of an older version lacks the last cells. A file with another layout or size is
started again.

A pod's start waits for this module.
"""

from __future__ import annotations

import posix
import time
from _struct import Struct
from errno import ENOSPC
from fcntl import LOCK_EX, LOCK_NB, flock

from ..kernel.stderr import warn
from ..model import errors
from ..model.attachments import IPTABLES, NFTABLES
from ..model.errors import IO_FAILURE, CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .directory import State

BACKENDS = (NFTABLES, IPTABLES)
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS")
BUCKETS_MS = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10000)
# All codes of the specification, and ours. The order is part of the layout.
CODES = (
    *range(1, 9),
    errors.TRY_AGAIN_LATER,
    errors.NOT_AVAILABLE,
    51,
    errors.HOST_PORT_CONFLICT,
    errors.KERNEL_REFUSED,
    errors.STATE_DAMAGED,
    errors.CHECK_FAILED,
    errors.HOST_SETTING_REFUSED,
    errors.NO_ROUTE,
    errors.CLEAN_UP_INCOMPLETE,
    errors.PORT_RANGE_FULL,
    errors.NEWER_VERSION,
    errors.INTERNAL,
)
FLOW_SOURCES = ("nftables", "iptables", "ip6tables")
FLOW_TYPES = ("dnat", "masquerade", "snat")
REFUSED = "refused"  # not connections, but packets

_LAYOUT = b"QNATCTR2"  # change it with the meaning of any cell
_CALL_CELLS = 2 + len(BUCKETS_MS) + len(CODES) + 1
_FIRST_FLOW_CELL = len(BACKENDS) * len(VERBS) * _CALL_CELLS
_FIRST_REFUSED_CELL = _FIRST_FLOW_CELL + 2 * len(FLOW_SOURCES) * len(FLOW_TYPES)
_CELLS = _FIRST_REFUSED_CELL + 2 * len(FLOW_SOURCES)
_FILE_OF_1_0_0 = Struct(f"={len(_LAYOUT)}s{_FIRST_REFUSED_CELL}Q")
_FILE = Struct(f"={len(_LAYOUT)}s{_CELLS}Q")
_LARGEST = (1 << 64) - 1
_LOCK_ATTEMPTS = 1000
_LOCK_PAUSE_S = 0.001


class Calls:
    """The counters of one backend and verb.

    buckets: not cumulative; a call that took longer than the last bound is in none.
    failures: calls by error code, or "other".
    """

    __slots__ = ("buckets", "count", "failures", "sum_us")

    def __init__(self, cells: list[int]) -> None:
        self.count, self.sum_us = cells[:2]
        self.buckets = dict(zip(BUCKETS_MS, cells[2:]))
        self.failures = dict(zip((*map(str, CODES), "other"), cells[2 + len(BUCKETS_MS) :]))


class Cells:
    """The content of a network's file."""

    __slots__ = ("values",)

    def __init__(self, content: bytes = b"") -> None:
        """Unpack a file's content; with another layout or size, all cells are 0."""
        self.values = [0] * _CELLS
        for form in (_FILE, _FILE_OF_1_0_0):
            if len(content) == form.size and content.startswith(_LAYOUT):
                found = form.unpack(content)[1:]
                self.values[: len(found)] = found

    def packed(self) -> bytes:
        return _FILE.pack(_LAYOUT, *(min(value, _LARGEST) for value in self.values))

    def count_call(self, backend: str, verb: str, duration_us: int, code: int) -> None:
        """Count a call that ended with this error code (0 for success)."""
        first = _first_call_cell(backend, verb)
        self.values[first] += 1
        self.values[first + 1] += duration_us
        for number, bucket_ms in enumerate(BUCKETS_MS):
            if duration_us <= bucket_ms * 1000:
                self.values[first + 2 + number] += 1
                break
        if code:
            number = CODES.index(code) if code in CODES else len(CODES)
            self.values[first + 2 + len(BUCKETS_MS) + number] += 1

    def calls(self, backend: str, verb: str) -> Calls:
        first = _first_call_cell(backend, verb)
        return Calls(self.values[first : first + _CALL_CELLS])

    def gone(self, source: str, flow_type: str) -> int:
        return self.values[_flow_cell(source, flow_type)]

    def add_gone(self, source: str, flow_type: str, flows: int) -> None:
        self.values[_flow_cell(source, flow_type)] += flows

    def seen(self, source: str, flow_type: str) -> int:
        return self.values[_flow_cell(source, flow_type) + 1]

    def set_seen(self, source: str, flow_type: str, flows: int) -> None:
        self.values[_flow_cell(source, flow_type) + 1] = flows


def _first_call_cell(backend: str, verb: str) -> int:
    return (BACKENDS.index(backend) * len(VERBS) + VERBS.index(verb)) * _CALL_CELLS


def _flow_cell(source: str, flow_type: str) -> int:
    if flow_type == REFUSED:
        return _FIRST_REFUSED_CELL + 2 * FLOW_SOURCES.index(source)
    number = FLOW_SOURCES.index(source) * len(FLOW_TYPES) + FLOW_TYPES.index(flow_type)
    return _FIRST_FLOW_CELL + 2 * number


class CounterFile:
    """The counter file of one network. Each method takes a few system calls, and is safe to call from any thread."""

    __slots__ = ("_path", "_state")

    def __init__(self, state: State, network: str) -> None:
        self._state = state
        self._path = f"{state.directory}/counters/{network}"

    def change(self, change: Callable[[Cells], None], *, create: bool) -> Cells | None:
        """Change the cells in place, and return them; None if there is no file and `create` is false.

        Raises:
            OSError: the file cannot be read or written.
            CniError: (5) the state directory cannot be created.
        """
        descriptor = self._open(create=create)
        if descriptor < 0:
            return None
        try:
            _lock_briefly(descriptor)
            before = posix.pread(descriptor, _FILE.size + 1, 0)
            cells = Cells(before)
            change(cells)
            after = cells.packed()
            if after != before:
                _write(descriptor, after, is_new=len(before) != len(after))
        finally:
            posix.close(descriptor)
        return cells

    def read(self) -> Cells:
        """Return the cells; all 0 if there is no file."""
        return self.change(lambda _: None, create=False) or Cells()

    def _open(self, *, create: bool) -> int:
        flags = posix.O_RDWR | posix.O_CLOEXEC | posix.O_NOFOLLOW
        self._state.make_directory()  # this also checks that it is ours
        try:
            return posix.open(self._path, flags | (posix.O_CREAT if create else 0), 0o600)
        except FileNotFoundError:
            if not create:
                return -1
        try:
            posix.mkdir(f"{self._state.directory}/counters", 0o700)
        except FileExistsError:
            pass  # another call has just created it
        return posix.open(self._path, flags | posix.O_CREAT, 0o600)


def _lock_briefly(descriptor: int) -> None:
    """Take a lock that is only ever held for microseconds; raise TimeoutError after a second.

    It polls: alarms, as the state directory's lock uses, work in the main thread only, and API calls come from any.
    """
    for _ in range(_LOCK_ATTEMPTS):
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return
    raise TimeoutError(0, "timed out waiting for its lock")


def _write(descriptor: int, content: bytes, *, is_new: bool) -> None:
    if is_new:
        posix.ftruncate(descriptor, 0)
    if posix.pwrite(descriptor, content, 0) != len(content):
        raise OSError(ENOSPC, posix.strerror(ENOSPC))


class CallCounter:
    """Counts one call, whether it succeeds or fails; a failure to count is a warning."""

    __slots__ = ("_backend", "_file", "_started_at", "_verb")

    def __init__(self, file: CounterFile, backend: object, verb: str, started_at: float) -> None:
        """Prepare to count. `started_at` is from time.monotonic(). An unknown backend counts as the default."""
        self._file = file
        self._backend = IPTABLES if backend == IPTABLES else NFTABLES
        self._verb = verb
        self._started_at = started_at

    def count(self, code: int) -> None:
        """Count the call as ending now with this error code (0 for success)."""
        duration_us = int((time.monotonic() - self._started_at) * 1_000_000)
        unless_impossible(
            lambda: self._file.change(
                lambda cells: cells.count_call(self._backend, self._verb, duration_us, code), create=True
            )
        )


def unless_impossible(count: Callable[[], object]) -> None:
    """Count; warn if that fails, and go on."""
    try:
        count()
    except CniError as error:
        warn(error)
    except OSError as error:
        warn(CniError(IO_FAILURE, f"cannot update counters: {error}", "The metrics miss this call; the call goes on."))


def counted_networks(state: State) -> list[str]:
    """Return the names of the networks that have counters."""
    try:
        return sorted(posix.listdir(f"{state.directory}/counters"))
    except FileNotFoundError:
        return []
