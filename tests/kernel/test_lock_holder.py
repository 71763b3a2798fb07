"""Who holds the lock is named on file systems whose files bear another device than /proc/locks shows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from cni_quantum_nat.model.errors import CniError
from cni_quantum_nat.state import lock as lock_module
from cni_quantum_nat.state.lock import Lock

from .topology import run

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path


def test_the_holder_of_a_lock_on_overlayfs_is_named(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("upper", "work", "state"):
        (tmp_path / name).mkdir()
    # Layers of two file systems: then a file has the device of neither.
    options = f"lowerdir=/etc,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    run("mount", "-t", "overlay", "-o", options, "overlay", str(tmp_path / "state"))
    stack.callback(run, "umount", "--lazy", str(tmp_path / "state"))
    monkeypatch.setattr(lock_module, "LOCK_TIMEOUT_S", 0.05)
    held, wanted = Lock(f"{tmp_path}/state/lock"), Lock(f"{tmp_path}/state/lock")
    held.acquire()
    stack.callback(held.release)
    with pytest.raises(CniError, match=rf"process {os.getpid()}\) has held"):
        wanted.acquire()
