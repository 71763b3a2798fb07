"""Every error code is documented, and error objects follow the specification."""

from __future__ import annotations

import re
from pathlib import Path

from cni_quantum_nat.model import errors

DOCUMENT = Path(__file__).parents[3] / "docs" / "operations.md"


def test_every_code_is_documented_with_its_name() -> None:
    documented = {
        name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` ", DOCUMENT.read_text(), re.MULTILINE)
    }
    defined = {name: value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    assert documented == defined
    assert 3 not in defined.values()


def test_an_error_object_follows_the_specification() -> None:
    error = errors.CniError(7, "what is wrong", "what to do")
    error.add_note("Undoing it failed too: x.")
    assert error.as_result("1.0.0") == {
        "cniVersion": "1.0.0",
        "code": 7,
        "msg": "what is wrong",
        "details": "what to do Undoing it failed too: x.",
    }
    assert "details" not in errors.CniError(7, "x").as_result("1.0.0")
