"""Decode and encode JSON with the interpreter's C scanner and encoder.

`import json` takes 5.8 of the 12 ms that a call takes (most of it for `re`), `_json` alone 0.5 ms. A unit test compares the
two, and fails if an interpreter lacks `_json`.

A pod's start waits for this module.
"""

from __future__ import annotations

import _json


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is out of range")
    return number


class _Scanning:
    """The settings of `json.JSONDecoder(strict=True)`, as `_json.make_scanner` reads them."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = staticmethod(_finite)
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)


def _refuse_object(value: object) -> object:
    raise TypeError(f"{type(value).__name__} has no JSON form")


_scan = _json.make_scanner(_Scanning)  # type: ignore[arg-type]  # typeshed asks for the scanner itself
_encode = _json.make_encoder(None, _refuse_object, _json.encode_basestring_ascii, None, ": ", ", ", False, False, False)

_WHITE_SPACE = " \t\n\r"


def loads(text: str) -> object:
    """Decode one JSON value; raise ValueError with the position if the text is not JSON."""
    text = text.strip(_WHITE_SPACE)
    try:
        value, end = _scan(text, 0)
    except StopIteration as stop:
        raise ValueError(f"expected a value at character {stop.value}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except SystemError:  # the C scanner raises json.decoder's exception, and fails if that module is not loaded
        raise _find_error(text) from None
    if end != len(text):
        raise ValueError(f"unexpected text after the value, at character {end}")
    return value


def dumps(value: object) -> str:
    """Encode as ASCII on one line; raise ValueError for NaN and infinity."""
    return "".join(_encode(value, 0))


def _find_error(text: str) -> ValueError:
    """Return an error with the reason and the position."""
    import json  # rare: only for text that is not JSON

    try:
        json.loads(text)
    except RecursionError:
        return ValueError("nested too deeply")
    except ValueError as error:
        return error
    return ValueError("cannot be decoded")
