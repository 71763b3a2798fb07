"""Sequence numbers only grow, whatever becomes of the file, and the port allocated last is remembered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cni_quantum_nat.model.errors import CniError
from cni_quantum_nat.state.directory import State
from cni_quantum_nat.state.numbers import Numbers
from tests.unit.attachments import attachment


def numbers(path: Path, highest: int = 0) -> Numbers:
    return Numbers(str(path), lambda: highest)


def test_each_number_is_given_once_and_ports_are_remembered_by_protocol(tmp_path: Path) -> None:
    path, given = tmp_path / "numbers", []
    for turn in range(3):
        open_now = numbers(path)
        given += [open_now.next_sequence(), open_now.next_sequence()]
        assert open_now.last_ports == (
            {"tcp": 0, "udp": 0, "sctp": 0} if not turn else {"tcp": 1, "udp": 65535, "sctp": 0}
        )
        open_now.last_ports.update(tcp=1, udp=65535)
        open_now.close()
    assert given == [1, 2, 3, 4, 5, 6]
    assert path.stat().st_size == 14
    assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_is_written_before_the_end_nor_when_nothing_changed(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    first = numbers(path)
    first.next_sequence()
    assert path.read_bytes() == b""
    first.close()
    os.utime(path, ns=(0, 0))
    numbers(path).close()
    assert path.stat().st_mtime_ns == 0


@pytest.mark.parametrize("damage", ["gone", "short", "long", "empty", "link", "writable", "pipe"])
def test_a_file_that_is_not_what_we_made_goes_on_from_the_highest_number_on_record(tmp_path: Path, damage: str) -> None:
    path, elsewhere = tmp_path / "numbers", tmp_path / "elsewhere"
    before = numbers(path, highest=41)
    assert before.next_sequence() == 42
    before.close()
    elsewhere.write_bytes(path.read_bytes())
    content = path.read_bytes()
    path.unlink()
    if damage == "short":
        path.write_bytes(content[:-1])
    elif damage == "long":
        path.write_bytes(content + b"\0")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "link":
        path.symlink_to(elsewhere)
    elif damage == "writable":
        path.write_bytes(content)
        path.chmod(0o666)
    elif damage == "pipe":
        os.mkfifo(path)
    after = numbers(path, highest=99)
    assert after.next_sequence() == 100
    after.close()
    assert not path.is_symlink()
    assert path.stat().st_size == 14
    assert elsewhere.read_bytes() == content, "a link is not followed"
    last = numbers(path)
    assert last.sequence == 100
    last.close()


def test_a_directory_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "numbers").mkdir()
    with pytest.raises(CniError, match="cannot read") as caught:
        numbers(tmp_path / "numbers")
    assert caught.value.code == 5


def test_a_lost_file_goes_on_from_the_records_and_the_counts_of_1_0_0_go(tmp_path: Path) -> None:
    """1.0.0 would believe the files in claims/, when it is installed again."""
    state = State(str(tmp_path / "state"))
    state.lock()
    for number, container in ((7, "a"), (5, "b")):
        made = attachment("net", container, "eth0")
        made.sequence = number
        state.write(made)
    claims = tmp_path / "state" / "claims"
    claims.mkdir()
    (claims / "tcp").write_bytes(bytes(65538))
    open_now = state.numbers()
    assert open_now.next_sequence() == 8
    open_now.close()
    assert not claims.exists()
    (tmp_path / "state" / "numbers").unlink()
    again = state.numbers()
    assert again.sequence == 7, "the number that no record has is given again"
    again.close()
    state.unlock()
