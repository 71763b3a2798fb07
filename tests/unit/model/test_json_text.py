"""json_text gives the same results as json."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.model.json_text import dumps, loads

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_output_matches_json_and_is_read_back(value: object) -> None:
    assert dumps(value) == json.dumps(value)
    assert loads(dumps(value)) == value


@given(VALUES, st.integers(0, 4))
def test_white_space_is_ignored(value: object, indent: int) -> None:
    assert loads(f"\n {json.dumps(value, indent=indent)}\t\r\n") == value


@given(st.text(max_size=40))
def test_the_same_texts_are_accepted_and_refused_as_by_json(text: str) -> None:
    try:
        expected = json.loads(text, parse_constant=_refuse)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            loads(text)
    else:
        assert loads(text) == expected


def _refuse(name: str) -> None:
    raise ValueError(name)


@pytest.mark.parametrize("text", ["", "   ", "{", "{} {}", "NaN", "[1,]", "[" * 100_000, '"\x01"'])
def test_invalid_json_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(text)


def test_a_value_without_a_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="set has no JSON form"):
        dumps({1})


@pytest.mark.parametrize("text", ['{"a": ', '{"a"', '"a', "[1 2]", '{"a": 1,}', '"\\x"', '"\n"', "[" * 100_000])
def test_invalid_json_is_a_value_error_in_a_process_without_the_json_module(text: str) -> None:
    script = (
        "import sys; from cni_quantum_nat.model.json_text import loads; assert 'json' not in sys.modules\n"
        f"try: loads({text[:10]!r} * {len(text) // len(text[:10])})\nexcept ValueError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
