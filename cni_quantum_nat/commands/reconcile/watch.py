"""`quantum-nat reconcile --watch`: heals the rules as soon as something takes them away, until it is told to end.

What is lost at once is told by nf_tables' notifications; what those cannot tell (iptables-legacy, elements that somebody
added) is found by a comparison of everything now and then.
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

from ...backends.base import Holders
from ...backends.iptables.rules import FIXED_CHAINS
from ...model.errors import CniError
from .anchor import Anchor
from .notifications import Event, Kind, Notifications
from .repair import as_json, reconcile, summary

if TYPE_CHECKING:
    from ...state.directory import State
    from .repair import Outcome

_QUIET_S = 0.02  # a DEL deletes elements first and the record a moment later
_RESTLESS_S = 1.0  # then it is looked at all the same
_AFTER_FAILURE_S = 5.0
_DESTRUCTIVE = {Kind.TABLE_DELETED, Kind.CHAIN_DELETED, Kind.RULE_DELETED, Kind.SET_DELETED, Kind.LOST}
_BUILT_IN_CHAINS = {"PREROUTING", "OUTPUT", "POSTROUTING", "FORWARD"}
_FIXED_CHAINS = {name for names in FIXED_CHAINS.values() for name in names} | _BUILT_IN_CHAINS


def watch(state: State, interval_s: float, *, as_json: bool) -> int:
    """Reconcile now, and then whenever there is reason to; returns when SIGTERM or SIGINT arrives."""
    with ExitStack() as stack:
        notifications = stack.enter_context(Notifications())
        stop = _stop_descriptor(stack)
        log = Log(as_json=as_json)
        log.say(_hold_anchor(stack))
        watcher = Watcher(state, notifications, interval_s, log)
        watcher.heal()
        _tell_systemd("READY=1")
        while not watcher.must_stop(stop):
            watcher.step()
    return 0


def _hold_anchor(stack: ExitStack) -> str:
    try:
        stack.enter_context(Anchor())
    except CniError as error:
        return (
            f"Watching. Established connections may break when the ruleset is flushed: {error.message}. {error.details}"
        )
    return "Watching."


def _stop_descriptor(stack: ExitStack) -> int:
    """Return what becomes readable when the process is told to end."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    stack.callback(os.close, reading)
    stack.callback(os.close, writing)
    signal.set_wakeup_fd(writing)
    stack.callback(signal.set_wakeup_fd, -1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reading


class Watcher:
    """Decides when to look. due: when everything is compared next, on the monotonic clock."""

    def __init__(self, state: State, notifications: Notifications, interval_s: float, log: Log) -> None:
        self._state = state
        self._holders = Holders(state)
        self._notifications = notifications
        self._interval_s = interval_s
        self._log = log
        self._due = 0.0

    def must_stop(self, stop: int) -> bool:
        """Wait for something to do; whether it is to end."""
        self._notifications.wait(self._due - time.monotonic(), stop)
        try:
            arrived = os.read(stop, 64)  # the numbers of signals: also the one that ends the wait for a lock
        except BlockingIOError:
            return False
        return signal.SIGTERM in arrived or signal.SIGINT in arrived

    def step(self) -> None:
        """Look at what happened, and heal where that is called for."""
        events = self._notifications.read()
        if time.monotonic() >= self._due or any(map(self._calls_for_healing, events)):
            self.heal()
        elif any(event.elements or _may_alter(event) for event in events):
            self._wait_for_quiet(events)

    def heal(self) -> None:
        """Reconcile, and say so if there was anything to do; what failed is tried again in a few seconds."""
        self._due = time.monotonic() + self._interval_s
        self._notifications.read_all()  # what happened by now will be seen; what happens from now on is another matter
        if not self._state.exists():
            return  # nothing was added since the host was started
        try:
            outcome = reconcile(self._state)
        except CniError as error:
            self._log.complain(error)
            self._due = time.monotonic() + min(self._interval_s, _AFTER_FAILURE_S)
            return
        self._log.tell(outcome)

    def _calls_for_healing(self, event: Event) -> bool:
        """Whether it can only be damage; an ADD or DEL of ours deletes nothing but elements."""
        if event.kind not in _DESTRUCTIVE:
            return False
        if event.kind is Kind.LOST or event.is_of_our_table:
            return True
        if event.table not in FIXED_CHAINS or not self._state.has_iptables():
            return False
        return event.kind is Kind.TABLE_DELETED or event.name in _FIXED_CHAINS

    def _wait_for_quiet(self, events: list[Event]) -> None:
        """Let whoever is at work finish; then look whether a rule was added, or what was deleted is missed by a record."""
        deadline = time.monotonic() + _RESTLESS_S
        while time.monotonic() < deadline and self._notifications.wait(_QUIET_S):
            events += self._notifications.read_all()
            if any(map(self._calls_for_healing, events)):
                break
        else:
            owners = {element.owner for event in events for element in event.elements}
            if not any(map(_may_alter, events)) and not any(map(self._holders.record_of, owners)):
                return
        self.heal()


def _may_alter(event: Event) -> bool:
    """Whether somebody added to the chains: it may also be an ADD that builds the table."""
    return event.is_of_our_table and event.kind in (Kind.RULE_ADDED, Kind.CHAIN_ADDED)


class Log:
    """What it says of itself, a line each: to a terminal, to the journal, or as JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def say(self, words: str) -> None:
        self._print(words, {"message": words})

    def tell(self, outcome: Outcome) -> None:
        """Say what was put right; nothing when nothing was."""
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
    """Say sd_notify(3), where the service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.send(message.encode())
