"""A call that needs the full program: what it gets from the plugin, and what the plugin has undone by then."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.topology import wait_until

from .release import PROGRAM, Release, succeeds

pytestmark = pytest.mark.frozen

# In place of the loader: says what it was started with, and whether anybody can have the lock, or sees a record.
WITNESS = """#!/bin/sh
cd "$(dirname "$0")"
printf '%s\\n' "$@" >arguments
cat >request
if flock -n {state}/lock true; then echo free; else echo held; fi >lock
find {state} -path '*/attachments/*.json' >records
"""


# The full program checks this, and makes a table with that.
FOR_THE_MODEL: dict[str, Any] = {"noMasqueradeTo": ["192.0.2.0/24"]}
FOR_LIBNFTABLES: dict[str, Any] = {"conntrackTimeout": 7200}


def watch(release: Release) -> Path:
    """Put the witness in the loader's place, and return the directory that it writes to."""
    (loader,) = release.internal.glob("ld-linux-*")
    loader.unlink()
    loader.write_text(WITNESS.format(state=release.state))
    loader.chmod(0o755)
    return loader.parent


def test_the_full_program_gets_the_request_and_the_lock(release: Release) -> None:
    seen = watch(release)
    succeeds(release.call("ADD", unknown="x" * 300_000, **FOR_THE_MODEL))
    assert json.loads((seen / "request").read_text()) == release.request(unknown="x" * 300_000, **FOR_THE_MODEL)
    assert (seen / "lock").read_text() == "held\n"
    *_, name, program = (seen / "arguments").read_text().split()
    assert name == release.program
    assert program == str(release.internal / "quantum-nat-full")


def test_what_was_changed_is_undone_before(release: Release) -> None:
    """A table that is gone is noticed when the record is written already."""
    succeeds(release.call("ADD", "first", **FOR_LIBNFTABLES))
    subprocess.run([*release.namespaces, "nft", "delete", "table", "inet", "quantum"], check=True)
    seen = watch(release)
    succeeds(release.call("ADD", "second", **FOR_LIBNFTABLES))
    assert [Path(line).parent.name for line in (seen / "records").read_text().split()] == ["first"]
    assert (seen / "lock").read_text() == "held\n"


def test_what_is_not_undone_is_finished_before(release: Release) -> None:
    """A DEL removes the rules, and then needs the full program, which moves the network to another backend and finds nothing to remove."""
    succeeds(release.call("ADD"))
    conntrack = [*release.namespaces, "conntrack"]
    flow = "-p tcp -s 10.88.0.2 -d 198.51.100.1 --sport 1000 --dport 80 --state ESTABLISHED -u SEEN_REPLY -t 600"
    subprocess.run([*conntrack, "-I", *flow.split()], check=True, capture_output=True)
    assert succeeds(release.call("DEL", backend="iptables", prevResult=None)) == ""
    listed = subprocess.run([*conntrack, "-L"], check=True, capture_output=True, text=True)
    assert listed.stdout == ""


def test_the_first_add_of_all_needs_no_full_program(release: Release) -> None:
    seen = watch(release)
    succeeds(release.call("ADD"))
    assert not (seen / "arguments").exists()


def test_many_inherited_descriptors_are_no_reason_to_fail(alone: Release) -> None:
    """libnftables' select(2) would end the process. Its child there is the full program again, which has no Python beside it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, before[1]))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
        for descriptor in opened:
            stack.callback(os.close, descriptor)
        alone.descriptors = tuple(range(3, opened[-1] + 1))  # without a gap
        answer = succeeds(alone.call("ADD", **FOR_LIBNFTABLES))
        subprocess.run([*alone.namespaces, "nft", "flush", "chain", "inet", "quantum", "published"], check=True)
        succeeds(alone.operate("reconcile", "--json"))
        succeeds(alone.call("CHECK", prevResult=json.loads(answer), **FOR_LIBNFTABLES))
    listed = subprocess.run(
        [*alone.namespaces, "nft", "list", "table", "inet", "quantum"], check=True, capture_output=True, text=True
    )
    assert "established_7200" in listed.stdout


def test_nobody_comes_in_between_though_many_wait(release: Release) -> None:
    """Of ADDs at the same time on a host without a table the first one builds it, and it is counted once."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: release.call("ADD", f"container{number}"), range(8)))
    for answer in answers:
        succeeds(answer)
    lines = succeeds(release.operate("metrics")).splitlines()
    (counted,) = [line for line in lines if line.startswith("nat_operations_total{") and '"ADD"' in line]
    assert float(counted.rpartition(" ")[2]) == 8


def test_a_request_larger_than_a_pipe_is_handed_on_whole(release: Release) -> None:
    padding = ["x" * 1000] * 3000
    result = {**release.request()["prevResult"], "padding": padding}
    assert json.loads(succeeds(release.call("ADD", prevResult=result, **FOR_THE_MODEL)))["padding"] == padding


def test_a_full_program_that_is_not_there_is_an_error_in_the_callers_version(release: Release) -> None:
    loader = next(release.internal.glob("ld-linux-*"))
    release.internal.rename(release.root / "elsewhere")
    answer = release.call("ADD", cniVersion="0.4.0", **FOR_THE_MODEL)
    assert answer.returncode == 1
    error = json.loads(answer.stdout)
    assert (error["cniVersion"], error["code"]) == ("0.4.0", 5)
    assert error["msg"] == f"cannot start {loader}: No such file or directory"
    assert error["details"].endswith(f": ln -sf /usr/lib/quantum-nat/quantum-nat {release.program}")
    command = release.operate("list")
    assert command.returncode == 1
    assert command.stderr == f"quantum-nat: {error['msg']}\n{error['details']}\n"


def test_a_request_that_cannot_be_handed_on_is_an_error_in_the_callers_version(release: Release) -> None:
    """A file in memory counts for the limit of a file's size; its signal is ignored, as in a service of systemd's with LimitFSIZE."""
    release.before = ["sh", "-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "sh"]
    answer = release.call("ADD", cniVersion="0.4.0", **FOR_THE_MODEL)
    assert (answer.returncode, answer.stderr) == (1, "")
    error = json.loads(answer.stdout)
    assert (error["cniVersion"], error["code"]) == ("0.4.0", 5)
    assert error["msg"] == "cannot hand the request on to the full program: File too large"
    release.before = []
    succeeds(release.call("ADD", cniVersion="0.4.0", **FOR_THE_MODEL))


def test_a_call_that_waits_for_the_lock_in_vain_says_who_has_it(release: Release) -> None:
    """It has waited for a minute in the plugin, and does not wait again in the full program."""
    succeeds(release.call("ADD"))
    with (release.state / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = release.call("DEL")
    error = json.loads(answer.stdout)
    assert error["code"] == 11
    assert f"(process {os.getpid()})" in error["msg"]


@pytest.mark.parametrize("variable", ["LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH"])
def test_no_library_that_somebody_wants_everywhere_comes_along(release: Release, variable: str) -> None:
    """It would be one for the host's C library."""
    command = f"{variable}={release.root}/lib.so exec {release.program} --version"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("quantum-nat ")
    assert done.stderr == ""


def test_nothing_of_the_hosts_is_loaded(tmp_path: Path) -> None:
    """What a long-lived command has mapped, on this host with its C library: files of the release release."""
    state = tmp_path / "state"
    state.mkdir()
    line = ["unshare", "--net", str(PROGRAM), "--state-dir", str(state), "metrics", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        try:
            maps = Path(f"/proc/{process.pid}/maps")
            wait_until(lambda: "/lib-dynload/" in maps.read_text(), "it loads its modules")
            files = {words[5] for words in map(str.split, maps.read_text().splitlines()) if len(words) > 5}
            name = Path(f"/proc/{process.pid}/comm").read_text()
        finally:
            process.kill()
    assert {
        path for path in files if path.startswith("/") and not path.startswith(f"{PROGRAM.parent}/_internal-")
    } == set()
    assert any(path.endswith("libc.so.6") for path in files)
    assert name == "quantum-nat\n"
