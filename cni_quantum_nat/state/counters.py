"""What happened on a network, counted across calls in one file of constant size.

    counters/NETWORK    8 bytes that name the layout, then cells of 8 bytes in the host's byte order:
                        for each backend and verb: calls, microseconds, a cell a bucket of durations, a cell an error code
                        for each source of flow counts and type of translation: gone, seen (see flows.py)

A change reads and writes all of it, 3 KiB, under a flock(2) on the file itself: a call that could not get the state
directory's lock is counted too. What is not of this layout and size is begun anew.
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
# The specification's, whether we use them or not, and ours. The order is part of the layout.
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

_LAYOUT = b"QNATCTR2"  # to be changed with the meaning of any cell
_CALL_CELLS = 2 + len(BUCKETS_MS) + len(CODES) + 1
_FIRST_FLOW_CELL = len(BACKENDS) * len(VERBS) * _CALL_CELLS
_CELLS = _FIRST_FLOW_CELL + 2 * len(FLOW_SOURCES) * len(FLOW_TYPES)
_FILE = Struct(f"={len(_LAYOUT)}s{_CELLS}Q")
_LARGEST = (1 << 64) - 1
_LOCK_ATTEMPTS = 1000
_LOCK_PAUSE_S = 0.001


class Calls:
    """What one backend and verb has: `buckets` are not cumulative, what took longer than the last is in none.

    failures: how many ended with each code, by the code or "other".
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
        """Read it; what is of another layout or size counts nothing."""
        self.values = [0] * _CELLS
        if len(content) == _FILE.size and content.startswith(_LAYOUT):
            self.values = list(_FILE.unpack(content)[1:])

    def packed(self) -> bytes:
        return _FILE.pack(_LAYOUT, *(min(value, _LARGEST) for value in self.values))

    def count_call(self, backend: str, verb: str, duration_us: int, code: int) -> None:
        """Count a call that ended with this error code, or with 0."""
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
    number = FLOW_SOURCES.index(source) * len(FLOW_TYPES) + FLOW_TYPES.index(flow_type)
    return _FIRST_FLOW_CELL + 2 * number


class CounterFile:
    """The file of one network. Each method is a handful of system calls, and any thread may call it."""

    __slots__ = ("_path", "_state")

    def __init__(self, state: State, network: str) -> None:
        self._state = state
        self._path = f"{state.directory}/counters/{network}"

    def change(self, change: Callable[[Cells], None], *, create: bool) -> Cells | None:
        """Change the cells in place, and return them; without `create`, None where there is no file.

        Raises: OSError; CniError(5) where the state directory cannot be made.
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
        """Return the cells; all are 0 where there is no file."""
        return self.change(lambda _: None, create=False) or Cells()

    def _open(self, *, create: bool) -> int:
        flags = posix.O_RDWR | posix.O_CLOEXEC | posix.O_NOFOLLOW
        self._state.make_directory()  # and see that it is ours: nobody else may lead us elsewhere
        try:
            return posix.open(self._path, flags | (posix.O_CREAT if create else 0), 0o600)
        except FileNotFoundError:
            if not create:
                return -1
        try:
            posix.mkdir(f"{self._state.directory}/counters", 0o700)
        except FileExistsError:
            pass  # made by another call, a moment ago
        return posix.open(self._path, flags | posix.O_CREAT, 0o600)


def _lock_briefly(descriptor: int) -> None:
    """Take a lock that everybody holds for microseconds; TimeoutError after a second.

    It polls: an alarm, as the state directory's lock has, is for the main thread alone, and API calls come from any.
    """
    for _ in range(_LOCK_ATTEMPTS):
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return
    raise TimeoutError(0, "its lock is held")


def _write(descriptor: int, content: bytes, *, is_new: bool) -> None:
    if is_new:
        posix.ftruncate(descriptor, 0)
    if posix.pwrite(descriptor, content, 0) != len(content):
        raise OSError(ENOSPC, posix.strerror(ENOSPC))


class CallCounter:
    """Counts one call, whatever becomes of it; a failure to count is a warning."""

    __slots__ = ("_backend", "_file", "_started_at", "_verb")

    def __init__(self, file: CounterFile, backend: object, verb: str, started_at: float) -> None:
        """`started_at` is of time.monotonic(). What names no backend that there is counts as the default's."""
        self._file = file
        self._backend = IPTABLES if backend == IPTABLES else NFTABLES
        self._verb = verb
        self._started_at = started_at

    def count(self, code: int) -> None:
        """Count it as ended now, with this error code, or with 0."""
        duration_us = int((time.monotonic() - self._started_at) * 1_000_000)
        unless_impossible(
            lambda: self._file.change(
                lambda cells: cells.count_call(self._backend, self._verb, duration_us, code), create=True
            )
        )


def unless_impossible(count: Callable[[], object]) -> None:
    """Count; whoever cannot is told, and goes on."""
    try:
        count()
    except CniError as error:
        warn(error)
    except OSError as error:
        warn(CniError(IO_FAILURE, f"cannot count: {error}", "Metrics miss it; the call itself goes on."))


def counted_networks(state: State) -> list[str]:
    """Name the networks that have counters."""
    try:
        return sorted(posix.listdir(f"{state.directory}/counters"))
    except FileNotFoundError:
        return []
