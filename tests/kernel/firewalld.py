"""Debian's firewalld with its nftables backend, in the host's namespace. It is unpacked, not installed: see tests/run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from .topology import run, wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from .topology import Host

_UNPACKED = Path(__file__).parents[2] / ".cache" / "debian"
# The program finds its files below /usr and /etc, in its own mount namespace.
_MOUNTS = """
mount -t tmpfs none /var/log
mount -t overlay overlay -o "lowerdir={unpacked}/firewalld/usr:{unpacked}/python3-firewall/usr:/usr" /usr
mount -t overlay overlay -o "lowerdir={unpacked}/firewalld/etc:/etc,upperdir={directory}/upper,workdir={directory}/work" /etc
exec dbus-daemon --config-file="{directory}/bus.conf" --nofork --nopidfile
"""
# No services are started on demand: without polkit, firewalld allows root everything.
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={directory}/bus</listen>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/>
    <allow send_requested_reply="true" send_type="method_return"/> <allow send_requested_reply="true" send_type="error"/>
  </policy>
</busconfig>
"""


class Firewalld:
    """firewalld, and a D-Bus daemon to reach it."""

    def __init__(self, host: Host, directory: Path, stack: ExitStack) -> None:
        self._host = host
        self._environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={directory}/bus"}
        for name in ("upper", "work"):
            (directory / name).mkdir(parents=True)
        (directory / "bus.conf").write_text(_BUS.format(directory=directory))
        script = _MOUNTS.format(unpacked=_UNPACKED, directory=directory)
        self._bus = self._start("unshare", "--mount", "sh", "-euc", script)
        stack.callback(self._end, self._bus)
        wait_until((directory / "bus").exists, "D-Bus is listening")
        self._daemon = self._start(*self._inside(), "firewalld", "--nofork", "--nopid")
        stack.callback(self._end, self._daemon)
        wait_until(self._is_running, "firewalld is running", 20)

    def call(self, *arguments: str) -> str:
        """Run firewall-cmd, which must succeed."""
        return run(
            "env", f"DBUS_SYSTEM_BUS_ADDRESS={self._environment['DBUS_SYSTEM_BUS_ADDRESS']}", *self._command(*arguments)
        )

    def shell(self, text: str) -> str:
        """Run a command line that must succeed, as an administrator would."""
        address = self._environment["DBUS_SYSTEM_BUS_ADDRESS"]
        return run("env", f"DBUS_SYSTEM_BUS_ADDRESS={address}", *self._inside(), "sh", "-c", text)

    def _is_running(self) -> bool:
        done = subprocess.run(self._command("--state"), env=self._environment, capture_output=True, check=False)
        return done.returncode == 0

    def _command(self, *arguments: str) -> list[str]:
        return [*self._inside(), "firewall-cmd", *arguments]

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self._bus.pid}", "--mount", f"--net={self._host.path}", "--"]

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, env=self._environment, stdin=quiet, stdout=quiet, stderr=quiet)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        process.wait(10)
