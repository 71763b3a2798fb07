"""The state directory: records appear and vanish whole, and belong to one attachment each."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cni_quantum_nat.model.attachments import AttachmentId
from cni_quantum_nat.model.errors import CniError
from cni_quantum_nat.state import lock as lock_module
from cni_quantum_nat.state.directory import State
from tests.unit.attachments import attachment


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(str(tmp_path / "a" / "state"))
    made.lock()
    return made


IDS = st.builds(
    AttachmentId, st.sampled_from(["n", "m"]), st.sampled_from(["c", "d", "c.d"]), st.sampled_from(["eth0", "e"])
)


class Records(RuleBasedStateMachine):
    """Whatever is written and removed, the directory says what a dictionary would."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.state = State(f"{self.directory}/state")
        self.state.lock()
        self.expected: dict[AttachmentId, int] = {}

    @rule(identity=IDS, port=st.integers(1, 65535))
    def write(self, identity: AttachmentId, port: int) -> None:
        self.state.write(attachment(identity.network, identity.container_id, identity.interface, port))
        self.expected[identity] = port

    @rule(identity=IDS)
    def remove(self, identity: AttachmentId) -> None:
        self.state.remove(identity)
        self.expected.pop(identity, None)

    @rule(identity=IDS)
    def read(self, identity: AttachmentId) -> None:
        record = self.state.read(identity)
        assert (record.port_mappings[0].host_port if record else None) == self.expected.get(identity)
        siblings = {sibling.id for sibling in self.state.siblings(identity)}
        assert siblings == {i for i in self.expected if i.container_id == identity.container_id and i != identity}

    @invariant()
    def all_are_there(self) -> None:
        assert {a.id: a.port_mappings[0].host_port for a in self.state.attachments([])} == self.expected
        containers = {path.name for path in Path(self.directory).glob("state/attachments/*")}
        assert containers == {identity.container_id for identity in self.expected}

    def teardown(self) -> None:
        self.state.unlock()
        shutil.rmtree(self.directory)


TestRecords = Records.TestCase
TestRecords.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def test_a_write_that_fails_half_way_leaves_the_old_record(state: State) -> None:
    state.write(attachment("n", "c", "eth0", 1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(CniError, match="cannot write") as caught:
            state.write(attachment("n", "c", "eth0", 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.code == 5
    record = state.read(AttachmentId("n", "c", "eth0"))
    assert record is not None
    assert record.port_mappings[0].host_port == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"network": 5}'])
def test_a_damaged_record_is_named_and_hides_no_other(state: State, content: str) -> None:
    state.write(attachment("n", "c", "eth0"))
    state.write(attachment("n", "d", "eth0"))
    path = Path(state.directory) / "attachments" / "c" / "n:eth0.json"
    path.write_text(content)
    with pytest.raises(CniError, match="is damaged") as caught:
        state.read(AttachmentId("n", "c", "eth0"))
    assert caught.value.code == 102
    assert str(path) in caught.value.message
    damaged: list[CniError] = []
    assert [a.id.container_id for a in state.attachments(damaged)] == ["d"]
    assert [error.code for error in damaged] == [102]


def test_the_lock_keeps_other_processes_out(state: State) -> None:
    script = f"import fcntl; fcntl.flock(open({state.directory + '/lock'!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 1
    state.unlock()
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0


def test_a_thread_waits_for_the_lock_too(state: State) -> None:
    """Which has no alarms: a program may use the Python API from any thread."""
    other = State(state.directory)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(other.lock)
        with pytest.raises(TimeoutError):
            waiting.result(0.1)
        state.unlock()
        waiting.result(10)
    other.unlock()


def test_a_lock_that_is_never_released_is_waited_for_only_so_long(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "LOCK_TIMEOUT_S", 0.05)
    with pytest.raises(CniError, match=rf"process {os.getpid()}\) has held") as caught:
        State(state.directory).lock()
    assert caught.value.code == 11


def test_a_directory_of_somebody_elses_making_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CniError, match="cannot use the state directory") as caught:
        State(str(tmp_path / "file")).lock()
    assert caught.value.code == 5


def test_a_cached_configuration_that_cannot_be_read_counts_as_none(state: State) -> None:
    state.write_configuration("n", {"given": {"a": 1}, "normalised": {}})
    assert state.read_configuration("n") == {"given": {"a": 1}, "normalised": {}}
    (Path(state.directory) / "networks" / "n.json").write_text("{")
    assert state.read_configuration("n") is None


def test_a_record_that_was_set_aside_is_there_for_a_minute(state: State) -> None:
    web = attachment("net", "web", "eth0")
    assert state.read_set_aside(web.id) is None
    state.set_aside(web)
    found = state.read_set_aside(web.id)
    assert found is not None
    assert found.as_record() == web.as_record()
    assert state.read_set_aside(AttachmentId("net", "web", "eth1")) is None
    state.forget_set_aside(web.id)
    assert state.read_set_aside(web.id) is None
    for age in (61, -61):
        state.set_aside(web)
        (file,) = Path(state.directory, "reload").iterdir()
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime - age))
        state.forget_networks()
        assert not file.exists()


def test_what_was_set_aside_is_not_believed_if_it_is_damaged_or_anothers(state: State, tmp_path: Path) -> None:
    web = attachment("net", "web", "eth0")
    state.set_aside(web)
    (file,) = Path(state.directory, "reload").iterdir()
    file.write_text("{")
    with pytest.raises(CniError, match="is damaged"):
        state.read_set_aside(web.id)
    shutil.rmtree(file.parent)
    file.parent.symlink_to(tmp_path)
    with pytest.raises(CniError, match="cannot use the state directory"):
        state.read_set_aside(web.id)
