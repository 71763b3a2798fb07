"""Pages say what an engineer would say; the check that sees to it refuses this project's own words, and no ordinary ones."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
VOICE = runpy.run_path(str(ROOT / "packaging" / "voice.py"))

REFUSED = [
    ("gives containers their way out", "outbound NAT"),
    ("and their way in (port mappings)", "published port"),
    ("new connections are dealt to them in turn", "distribute"),
    ("one of the slots of a port", "bucket"),
    ("the JointPlan of all", "full plan"),
    ("DEL forgets the container's flows", "delete conntrack entries"),
    ("How the tests make their world", "test topology"),
    ("a whole network's masquerade", "network CIDR"),
    ("host port 8080/tcp is held by container web", "in use by"),
    ("the error names the holder", "owner"),
    ("a neighbour reaches it", "container on the same network"),
    ("and puts right what differs", "repair"),
    ("one container shadows the other", "take over"),
    ("what becomes of a connection", "policy"),
    ("some settings of the host", "sysctls"),
    ("the heir of a port", "successor"),
    ("an IPv4 address in IPv6 clothes", "IPv4-mapped"),
    ("a runtime that did not say DEL", "call"),
]
ORDINARY = [
    "the lock is held for 60 seconds",
    "deal with it; a good deal of time",
    "in the same way in both backends",
    "on the way out, a packet meets postrouting",
    "leave it alone, and join the lines",
    "put the program on the right interface",
    "the kernel's neighbour table",
    "one flow through a published port",
    "`slots4` and `__slots__`",
    "a placeholder, world-readable, /etc/shadow",
    "the whole ID of a container; networks as a whole",
    "the code HOST_SETTING_REFUSED",
]


@pytest.mark.parametrize(("text", "instead"), REFUSED, ids=lambda value: str(value)[:40])
def test_words_of_our_own_are_refused_with_the_usual_one(text: str, instead: str) -> None:
    assert any(found.instead.startswith(instead) for found in VOICE["in_text"](text))


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_english_passes(text: str) -> None:
    assert list(VOICE["in_text"](text)) == []


def test_a_finding_has_the_line_where_its_words_begin() -> None:
    (found,) = VOICE["in_text"]("First.\n\nThe containers get their way\n   out of it.\n")
    assert (found.line, found.words) == (3, "way out")


def test_what_a_page_quotes_of_the_program_counts_with_its_code() -> None:
    page = "Text.\n\n```console\n# quantum-nat reconcile\nPut right 1 difference.\n```\n<!-- keys: begin -->\n| dealt |\n<!-- keys: end -->\n"
    assert list(VOICE["in_page"](page, quotes=False)) == []
    assert [found.line for found in VOICE["in_page"](page, quotes=True)] == [8, 5]


def test_strings_of_code_are_read_whole_and_comments_are_not() -> None:
    source = '"""A module.\n\nIts neighbours.\n"""\n# a neighbour\nname = f"port {1} is held"\n'
    source += 'class Fact:\n    """Has `holders`."""\n\n    __slots__ = ("holders",)\n'
    assert sorted(found.line for found in VOICE["in_code"](source)) == [3, 6]


def test_all_that_a_user_reads_passes() -> None:
    assert [f"{path.relative_to(ROOT)}:{found.line}: {found.words}" for path, found in VOICE["findings"]()] == []


def test_the_command_prints_where_and_what_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("# Title\n\nThe holder of a port.\n")
    main = VOICE["main"]
    monkeypatch.setitem(main.__globals__, "ROOT", tmp_path)
    assert main() == 1
    assert capsys.readouterr().out == 'README.md:3: "holder": say "owner"\n'
