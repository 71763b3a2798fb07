"""Changes of a JSON text that leave alone what they do not mean."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.commands.jsonedit import edited

SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.text('ab"\\é,:[]{}\n', max_size=4)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcdef"), inner, max_size=4)
)
LAYOUTS = st.sampled_from([{}, {"indent": 2}, {"indent": "\t"}, {"indent": 0}, {"separators": (",", ":")}])

HAND_WRITTEN = """{
  "cniVersion": "1.0.0",   "name": "n",
  "plugins": [
    { "type": "bridge", "ipMasq": true,
      "ipam": {"type": "host-local",
               "ranges": [ [{"subnet": "10.0.0.0/24"}] ]} },
    {
      "type": "portmap",
      "capabilities": {"portMappings": true}
    }
  ]
}
"""


@given(VALUES, VALUES, LAYOUTS)
def test_the_text_means_the_new_value(old: object, new: object, layout: dict[str, object]) -> None:
    after = json.loads(edited(json.dumps(old, **layout), new))  # type: ignore[arg-type]
    assert json.dumps(after, sort_keys=True) == json.dumps(new, sort_keys=True)


@given(VALUES, LAYOUTS)
def test_the_same_value_changes_nothing(value: object, layout: dict[str, object]) -> None:
    text = json.dumps(value, **layout)  # type: ignore[arg-type]
    assert edited(text, value) == text


@given(st.lists(SCALARS, min_size=1, max_size=6, unique_by=repr), st.data())
def test_what_is_inserted_or_removed_in_lines_of_their_own_is_one_line_of_a_difference(
    items: list[object], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(items)))
    longer = [*items[:at], {"new": 1}, *items[at:]]
    short, long = (json.dumps(value, indent=2, ensure_ascii=False) for value in (items, longer))
    assert edited(short, longer) == long.replace('{\n    "new": 1\n  }', '{"new": 1}')
    assert edited(long, items) == short


def test_a_changed_member_and_a_removed_one_leave_the_other_lines_alone() -> None:
    value = json.loads(HAND_WRITTEN)
    del value["plugins"][0]["ipMasq"]
    value["plugins"][1] |= {"type": "quantum-nat", "noMasqueradeTo": ["10.1.0.0/16"]}
    assert edited(HAND_WRITTEN, value) == HAND_WRITTEN.replace(', "ipMasq": true', "").replace(
        "portmap", "quantum-nat"
    ).replace('{"portMappings": true}', '{"portMappings": true},\n      "noMasqueradeTo": ["10.1.0.0/16"]')


def test_an_object_is_written_like_those_beside_it() -> None:
    value = json.loads(HAND_WRITTEN)
    value["plugins"].insert(1, {"type": "quantum-nat", "capabilities": {"portMappings": True}})
    added = '    {\n      "type": "quantum-nat",\n      "capabilities": {"portMappings": true}\n    },\n'
    before, line, after = HAND_WRITTEN.partition('    {\n      "type": "portmap"')
    assert edited(HAND_WRITTEN, value) == before + added + line + after


@pytest.mark.parametrize(
    ("text", "value", "after"),
    [
        ('{"a": 1}', {"a": 1, "b": 2}, '{"a": 1, "b": 2}'),
        ('{"a":1,"b":2}', {"a": 1, "b": 2, "c": 3}, '{"a":1,"b":2,"c":3}'),
        ("{ }", {"a": 1}, '{"a": 1}'),
        ("[1, 2, 3]", [3], "[3]"),
        ("[1, 2, 3]", [1, 3], "[1, 3]"),
        ("[1]", [True], "[true]"),
    ],
)
def test_small_changes(text: str, value: object, after: str) -> None:
    assert edited(text, value) == after
