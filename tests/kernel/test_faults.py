"""Calls that are killed, or get an error, at some of their system calls; `conformance/faults` covers all."""

from __future__ import annotations

import os
import platform
import signal
from pathlib import Path

import pytest
from conformance.faults_driver.campaign import Selection, run_scene
from conformance.faults_driver.scenes import SCENES

from .plugin import Plugin, PluginError, publish
from .topology import HOST, Container, Host, Namespace, wait_until

# Primes, so that every kind of fault is injected at all stages of the call.
EVERY = {"nftables": 127, "iptables-nft": 907}
OF_MANY_CALLS = {"ADD that repairs": 251, "reconcile": 499}


@pytest.mark.frozen
@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("name", SCENES)
def test_the_runtime_can_recover_from_any_interruption_and_others_are_not_affected(
    name: str, backend: str, tmp_path: Path
) -> None:
    count = run_scene(name, backend, tmp_path / "scene", Selection(max(EVERY[backend], OF_MANY_CALLS.get(name, 0))))
    assert count.problems == []
    assert count.injected > 0


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("name", ["ADD", "ADD again", "DEL"])
def test_a_call_killed_before_or_after_its_transaction_leaves_nothing_behind(
    name: str, backend: str, tmp_path: Path
) -> None:
    """If an ADD changes the ports, the record must keep the old and the new ones until the kernel has been changed."""
    calls = frozenset({"sendto", "rename"} if backend == "nftables" else {"vfork", "clone", "wait4", "rename"})
    count = run_scene(name, backend, tmp_path / "scene", Selection(kills_only=True, calls=calls))
    assert count.problems == []
    assert count.injected > 1


@pytest.mark.parametrize("backend", ["iptables-nft"], indirect=True)
def test_a_program_that_outlives_a_killed_call_holds_the_lock_until_it_ends(
    client: Namespace, container: Container, plugin: Plugin
) -> None:
    """Otherwise its changes would come after those of the retry."""
    assert plugin.programs is not None
    go, restore = plugin.programs / "go", plugin.programs / "iptables-restore"
    real = restore.readlink()
    os.mkfifo(go)
    restore.unlink()
    restore.write_text(f'#!/bin/sh\necho $$ >{plugin.programs}/started\nread _ <{go}\nexec {real} "$@"\n')
    restore.chmod(0o755)
    web = plugin.attachment(container, publish(8080))
    killed = plugin.start("ADD", web.configuration, container)
    wait_until((plugin.programs / "started").exists, "iptables-restore has started")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    restore.unlink()
    restore.symlink_to(real)
    retry = plugin.start("ADD", web.configuration, container)
    wait_until(lambda: _is_waiting_for_a_lock(retry.pid), "the retry waits for the lock")
    go.write_text("\n")
    plugin.finish(retry)
    web.check()
    assert client.ask(HOST[4], 8080).server == "web"
    assert plugin.operate("reconcile", "--dry-run").returncode == 0


@pytest.mark.parametrize("backend", ["iptables-nft"], indirect=True)
def test_a_program_killed_during_a_repair_loses_no_rules(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """This was once mistaken for a refusal of an attachment's rules, which were then left out."""
    other_container.serve("other", 80)
    plugin.add(other_container, publish(8081))
    assert plugin.programs is not None
    restore = plugin.programs / "iptables-restore"
    real = restore.readlink()
    restore.unlink()
    restore.write_text(
        f'#!/bin/sh\nscript=$(cat)\ncase $script in *8081*) kill -9 $$ ;; esac\necho "$script" | {real} "$@"\n'
    )
    restore.chmod(0o755)
    host.run("iptables-nft", "-t", "raw", "-F", "QUANTUM-GUARD")
    with pytest.raises(PluginError, match="signal 9") as caught:
        plugin.add(container, publish(8080))
    assert caught.value.code == 101
    assert client.ask(HOST[4], 8081).server == "other"


def _is_waiting_for_a_lock(process: int) -> bool:
    """Ask for the system call: /proc/locks does not show a lock whose holder is gone, in a PID namespace other than the first."""
    call = Path(f"/proc/{process}/syscall").read_text().split()[0]
    return call == {"x86_64": "73", "aarch64": "32"}[platform.machine()]  # flock
