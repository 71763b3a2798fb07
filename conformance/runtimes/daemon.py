"""The daemon of a runtime: a process in the host's network namespace, and its log."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

from tests.kernel.topology import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PATIENCE_S = 30
_LAST_LINES = 20


class Daemon:
    """A process that can be stopped and started again."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: list[str], answers: Callable[[], bool]) -> None:
        """Start the daemon, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until(lambda: self._has_not_ended() and answers(), "the daemon answers", _PATIENCE_S)
        except AssertionError as error:
            error.add_note("\n".join(self._log.read_text().splitlines()[-_LAST_LINES:]))
            raise

    def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Stop the daemon, if it is running."""
        if self._process is not None:
            self._process.send_signal(by)
            self._process.wait(_PATIENCE_S)
            self._process = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _has_not_ended(self) -> bool:
        assert self.runs, "the daemon has ended"
        return True
