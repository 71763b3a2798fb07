"""Ctrl-C while a command works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def test_ctrl_c_is_quiet(tmp_path: Path) -> None:
    pipe = tmp_path / "net.conflist"
    os.mkfifo(pipe)
    command = [sys.executable, "-I", "-m", "cni_quantum_nat", "validate", str(pipe)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}) as process,
        pipe.open("wb"),  # waits until the command reads it
    ):
        process.send_signal(signal.SIGINT)
        output, complaints = process.communicate(timeout=30)
    assert (process.returncode, output, complaints) == (130, b"", b"")
