"""What is wrong with a text that is not JSON."""

from __future__ import annotations

import json


def find_error(text: str) -> ValueError:
    """Return the error that says what is wrong, and where."""
    try:
        json.loads(text)
    except RecursionError:
        return ValueError("nested too deeply")
    except ValueError as error:
        return error
    return ValueError("it cannot be decoded")
