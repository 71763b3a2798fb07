"""JSON through the interpreter's own C scanner and encoder.

`import json` costs 5.8 ms of a process that lives 12 (most of it `re`); `_json`, which does the work
for it, 0.5. A unit test holds the two equal, and says so if an interpreter lacks `_json`.
"""

from __future__ import annotations

import _json


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


class _Scanning:
    """The settings that `_json.make_scanner` reads: those of `json.JSONDecoder(strict=True)`."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)


def _refuse_object(value: object) -> object:
    raise TypeError(f"{type(value).__name__} has no JSON form")


_scan = _json.make_scanner(_Scanning)  # type: ignore[arg-type]  # typeshed asks for the scanner itself
_encode = _json.make_encoder(None, _refuse_object, _json.encode_basestring_ascii, None, ": ", ", ", False, False, False)

_WHITE_SPACE = " \t\n\r"


def loads(text: str) -> object:
    """Decode one JSON value; ValueError says what is wrong and where."""
    text = text.strip(_WHITE_SPACE)
    try:
        value, end = _scan(text, 0)
    except StopIteration as stop:
        raise ValueError(f"expected a value at character {stop.value}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (
        SystemError
    ):  # the C scanner takes its exception from json.decoder, and where nobody has loaded that, raises none
        raise _find_error(text) from None
    if end != len(text):
        raise ValueError(f"unexpected text after the value, at character {end}")
    return value


def dumps(value: object) -> str:
    """Encode as ASCII on one line; ValueError for what JSON cannot say (NaN)."""
    return "".join(_encode(value, 0))


def _find_error(text: str) -> ValueError:
    """Return the error that says what is wrong, and where."""
    import json  # only for a text that is not JSON

    try:
        json.loads(text)
    except RecursionError:
        return ValueError("nested too deeply")
    except ValueError as error:
        return error
    return ValueError("it cannot be decoded")
