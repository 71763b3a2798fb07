"""Keep table `inet quantum_cover` in step with ours, by the kernel's notifications.

In a thread of its own, so that a host port that DEL has released is soon gone from the copy too, whatever the comparison waits for.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from enum import Enum
from select import select
from threading import Lock, Thread
from typing import TYPE_CHECKING, Self

from ...backends.nftables.cover import (
    DELETED_ELEMENTS,
    ELEMENTS_SET,
    NEW_ELEMENTS,
    NEW_GENERATION,
    OUR_TABLE,
    Cover,
    generation_of,
)
from ...backends.nftables.layout import LAYOUT_SET
from ...kernel.netlink import attributes
from ...model.errors import CniError, KernelRefused
from .notifications import FAMILY_HEADER_BYTES, Notifications

if TYPE_CHECKING:
    from ...kernel.netlink import Reply

_ELEMENTS = (NEW_ELEMENTS, DELETED_ELEMENTS)
_SERIAL = 1 << 32  # generations are counted modulo this


class Copy(Enum):
    """What the cover holds."""

    NONE = "nothing: it translates nothing"
    CURRENT = "what our table holds"
    OUTDATED = "an older state of our table, apart from its elements"
    DOUBTFUL = "the same; our table was missing when it should have been copied"


class Keeper:
    """A context manager that keeps the copy."""

    def __init__(self) -> None:
        """Create the table. CniError(50) if the kernel lacks owned tables, or another process keeps this one."""
        self._mutex = Lock()  # for all of the following
        self._holds = Copy.NONE
        self._generation = 0  # of the ruleset, when the copy was made
        self._transaction: list[tuple[int, bytes]] = []
        self._is_structural = False
        self._failure: CniError | None = None
        self._thread = Thread(target=self._follow, name="cover", daemon=True)
        with ExitStack() as stack:
            self._notifications = stack.enter_context(Notifications())
            self._cover = stack.enter_context(Cover())
            self._ended, self._end = pipe(stack)
            self._outdated, self._outdate = pipe(stack)
            self._resources = stack.pop_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._resources:
            os.write(self._end, b"\0")
            self._thread.join()

    def fileno(self) -> int:
        """Return a descriptor that is readable when the copy has to be made anew."""
        return self._outdated

    def take_news(self) -> bool:
        """Return whether the copy has to be made anew, once."""
        try:
            return bool(os.read(self._outdated, 1 << 16))
        except BlockingIOError:
            return False

    def copy(self) -> None:
        """Copy our table, if anything but its elements has changed. Call it under the lock of the state directory.

        If ours is missing, it may have been flushed since the comparison: a copy stays then, and has to be made anew. If ours
        is missing after that too, nothing needs it, and the copy translates nothing either.

        Raises:
            CniError: the copy cannot be made, or could not be kept in step.
        """
        with self._mutex:
            self._raise_failure()
            self._read()
            self.take_news()
            if self._holds is Copy.CURRENT:
                return
            generation = self._cover.copy()
            if generation is not None:
                self._generation, self._holds = generation, Copy.CURRENT
            elif self._holds is Copy.OUTDATED:
                self._tell_outdated()
                self._holds = Copy.DOUBTFUL
            else:
                self._clear()

    def clear(self) -> None:
        """Translate nothing, until the next copy: what should be translated cannot be told. CniError if that fails."""
        with self._mutex:
            self._raise_failure()
            self._clear()

    def _clear(self) -> None:
        if self._holds is not Copy.NONE:
            self._cover.clear()
            self._holds = Copy.NONE

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _follow(self) -> None:
        while self._ended not in select([self._notifications.fileno(), self._ended], [], [])[0]:
            with self._mutex:
                try:
                    self._read()
                except (CniError, OSError) as error:
                    if isinstance(error, OSError):
                        error = KernelRefused("report its changes", error.errno or 0)
                    self._failure = error
                    self._cover.close()  # and with it the table: it could translate to a container that is gone
                    self._tell_outdated()
                    return

    def _read(self) -> None:
        while received := self._notifications.receive():
            for reply in received:
                self._note(reply)
        if received is None:  # some were lost: the copy may have what ours has no more
            self._transaction, self._is_structural = [], False
            self._tell_outdated()
            self._clear()

    def _note(self, reply: Reply) -> None:
        """Note what changes our table; with the transaction's last message, do the same to the copy."""
        kind = reply.kind & 0xFF
        if kind == NEW_GENERATION:
            # Older ones are in the copy already.
            if (generation_of(reply.payload) - self._generation - 1) % _SERIAL < _SERIAL // 2:
                self._end_transaction()
            self._transaction, self._is_structural = [], False
        elif reply.payload.startswith(OUR_TABLE, FAMILY_HEADER_BYTES) and not self._is_structural:
            if kind not in _ELEMENTS:
                self._is_structural = True
            elif _set_of(reply.payload) != LAYOUT_SET:
                self._transaction.append((kind, reply.payload))

    def _end_transaction(self) -> None:
        if self._is_structural:
            # A flush, a rebuild or a new part: the copy stays as it is until ours was compared with the records.
            self._tell_outdated()
        elif self._transaction and self._holds is not Copy.NONE:
            try:
                self._cover.apply(self._transaction)
            except CniError:
                self._apply_singly()
                if self._holds is Copy.CURRENT:
                    self._tell_outdated()

    def _apply_singly(self) -> None:
        """Apply the deletions: a released port must not stay until the copy is made anew. A part of an addition would open a filtered port."""
        for kind, payload in self._transaction:
            if kind == DELETED_ELEMENTS:
                with suppress(CniError):
                    self._cover.apply([(kind, payload)])

    def _tell_outdated(self) -> None:
        if self._holds is not Copy.NONE:
            self._holds = Copy.OUTDATED
        with suppress(BlockingIOError):  # it is full of the same news
            os.write(self._outdate, b"\0")


def pipe(stack: ExitStack) -> tuple[int, int]:
    """Return the reading and the writing end of a pipe, neither of which blocks."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    stack.callback(os.close, reading)
    stack.callback(os.close, writing)
    return reading, writing


def _set_of(payload: bytes) -> str:
    return dict(attributes(payload, FAMILY_HEADER_BYTES))[ELEMENTS_SET].rstrip(b"\0").decode()
