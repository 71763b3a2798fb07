"""`quantum-nat reconcile --watch`: repair the rules as soon as they are removed, until SIGTERM or SIGINT.

nf_tables' notifications report most damage at once. A regular comparison of everything finds what they do not report:
iptables-legacy, and foreign elements.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ...backends.iptables.rules import FIXED_CHAINS
from ...model.attachments import AttachmentId
from ...model.errors import TRY_AGAIN_LATER, CniError
from .cover import Keeper, pipe
from .notifications import Event, Kind, Notifications
from .repair import as_json, reconcile, summary

if TYPE_CHECKING:
    from ...state.directory import State
    from .repair import Outcome

_QUIET_S = 0.02  # a DEL deletes elements first and the record a moment later
_RESTLESS_S = 1.0  # compare after this time even if changes continue
_AFTER_FAILURE_S = 5.0
_DESTRUCTIVE = {Kind.TABLE_DELETED, Kind.CHAIN_DELETED, Kind.RULE_DELETED, Kind.SET_DELETED, Kind.LOST}
_BUILT_IN_CHAINS = {"PREROUTING", "OUTPUT", "POSTROUTING", "FORWARD"}
_FIXED_CHAINS = {name for names in FIXED_CHAINS.values() for name in names} | _BUILT_IN_CHAINS


def watch(state: State, interval_s: float, *, as_json: bool) -> int:
    """Reconcile now, and whenever it may be needed; return on SIGTERM or SIGINT."""
    with ExitStack() as stack:
        notifications = stack.enter_context(Notifications())
        stop = _stop_descriptor(stack)
        log = Log(as_json=as_json)
        keeper = _keep_cover(stack, log)
        watcher = Watcher(state, notifications, interval_s, log, keeper)
        watcher.heal()
        _tell_systemd("READY=1")
        while not watcher.must_stop(stop):
            watcher.step()
    return 0


def _keep_cover(stack: ExitStack, log: Log) -> Keeper | None:
    try:
        keeper = stack.enter_context(Keeper())
    except CniError as error:
        log.say(
            "Watching. While the ruleset is flushed, established connections may break and new ones are refused: "
            f"{error.message}. {error.details}"
        )
        return None
    log.say("Watching.")
    return keeper


def _stop_descriptor(stack: ExitStack) -> int:
    """Return a descriptor that becomes readable on SIGTERM or SIGINT."""
    reading, writing = pipe(stack)
    signal.set_wakeup_fd(writing)
    stack.callback(signal.set_wakeup_fd, -1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reading


class Watcher:
    """Decides when to reconcile. _due: the time of the next full comparison, of time.monotonic()."""

    def __init__(
        self, state: State, notifications: Notifications, interval_s: float, log: Log, keeper: Keeper | None
    ) -> None:
        self._state = state
        self._keeper = keeper
        self._notifications = notifications
        self._interval_s = interval_s
        self._log = log
        self._due = 0.0
        self._has_failed = False  # at the last attempt

    def must_stop(self, stop: int) -> bool:
        """Wait for an event, the next comparison, or a signal; return whether to stop."""
        others = () if self._keeper is None else (self._keeper.fileno(),)
        self._notifications.wait(self._due - time.monotonic(), stop, *others)
        try:
            arrived = os.read(stop, 64)  # signal numbers, including the alarm that ends the wait for a lock
        except BlockingIOError:
            return False
        return signal.SIGTERM in arrived or signal.SIGINT in arrived

    def step(self) -> None:
        """Read the events, and repair if they call for it."""
        events = self._notifications.read()
        is_outdated = self._keeper is not None and self._keeper.take_news()
        if time.monotonic() >= self._due or is_outdated or any(map(self._calls_for_healing, events)):
            self.heal()
        elif any(event.elements or _may_alter(event) for event in events):
            self._wait_for_quiet(events)

    def heal(self) -> None:
        """Reconcile, and log what was repaired; after a failure, try again at once, and then in a few seconds."""
        self._due = time.monotonic() + self._interval_s
        self._notifications.read_all()  # the comparison covers the events so far
        if not self._state.exists():
            self._uncover()
            return  # nothing was added since the host booted
        try:
            outcome = reconcile(self._state, then=self._cover)
        except CniError as error:
            self._log.complain(error)
            self._failed(error)
            return
        self._has_failed = False
        self._log.tell(outcome)

    def _failed(self, error: CniError) -> None:
        """Try again, at once if a flush in the middle of the repair may be the cause."""
        is_repeated, self._has_failed = self._has_failed, True
        if error.code != TRY_AGAIN_LATER and not is_repeated:
            self._due = 0.0
            return
        self._due = time.monotonic() + min(self._interval_s, _AFTER_FAILURE_S)
        if error.code != TRY_AGAIN_LATER:  # while somebody keeps the lock, nobody releases a port
            self._uncover()

    def _cover(self) -> None:
        """Copy our table, which was just compared; ours is right even if that fails."""
        if self._keeper is not None:
            try:
                self._keeper.copy()
            except CniError as error:
                self._log.complain(error)
                self._keeper.clear()

    def _uncover(self) -> None:
        """Translate nothing in the place of our table: which ports are released cannot be told."""
        if self._keeper is not None:
            self._keeper.clear()

    def _calls_for_healing(self, event: Event) -> bool:
        """Return whether the event is damage for certain: ADD and DEL delete only elements."""
        if event.kind not in _DESTRUCTIVE:
            return False
        if event.kind is Kind.LOST or event.is_of_our_table:
            return True
        if event.table not in FIXED_CHAINS or not self._state.has_iptables():
            return False
        return event.kind is Kind.TABLE_DELETED or event.name in _FIXED_CHAINS

    def _is_on_record(self, comment: str) -> bool:
        """Whether what an element's comment names has a record; one that is abbreviated may have."""
        identity = AttachmentId.of_owner(comment.partition(":")[0])
        return identity is None or self._state.has_record(identity)

    def _wait_for_quiet(self, events: list[Event]) -> None:
        """Wait until changes stop; then repair if a rule was added, or a record lacks a deleted element."""
        deadline = time.monotonic() + _RESTLESS_S
        while time.monotonic() < deadline and self._notifications.wait(_QUIET_S):
            events += self._notifications.read_all()
            if any(map(self._calls_for_healing, events)):
                break
        else:
            owners = {element.owner for event in events for element in event.elements}
            if not any(map(_may_alter, events)) and not any(map(self._is_on_record, owners)):
                return
        self.heal()


def _may_alter(event: Event) -> bool:
    """Return whether the event adds to our chains; it may be an ADD that builds the table."""
    return event.is_of_our_table and event.kind in (Kind.RULE_ADDED, Kind.CHAIN_ADDED)


class Log:
    """The log, one line per entry, as text or JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def say(self, words: str) -> None:
        self._print(words, {"message": words})

    def tell(self, outcome: Outcome) -> None:
        """Log what was repaired, if anything."""
        for error in outcome.damaged:
            self.complain(error)
        if outcome.disagreements:
            kinds = sorted({f"{d.what}: {d.why}" for _, d in outcome.disagreements if d.change == "rebuild"})
            self._print(" ".join((*kinds[:1], summary(outcome))), as_json(outcome))

    def complain(self, error: CniError) -> None:
        print(f"quantum-nat: {error.message}. {error.details}", file=sys.stderr, flush=True)

    def _print(self, words: str, content: dict[str, object]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        print(json.dumps({"time": now, **content}) if self._as_json else f"{now} {words}", flush=True)


def _tell_systemd(message: str) -> None:
    """Send an sd_notify(3) message if the service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.send(message.encode())
