"""Run a function in another network namespace, in a child process."""

from __future__ import annotations

import ctypes
import json
import os
from typing import TYPE_CHECKING, Any

from ...model.errors import NOT_AVAILABLE, CniError

if TYPE_CHECKING:
    from collections.abc import Callable

_CLONE_NEWNET = 0x40000000


def ask_in_new_namespace(question: Callable[[], Any]) -> Any:
    """Return the function's result, which must be JSON, from a new, empty network namespace; raise CniError(50) if it fails."""
    return _ask(question, lambda libc: libc.unshare(_CLONE_NEWNET))


def ask_in_namespace(path: str, question: Callable[[], Any]) -> Any:
    """Return the function's result from the network namespace at a path; raise CniError(50) if it cannot be entered."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CniError(NOT_AVAILABLE, f"cannot enter network namespace {path}: {error.strerror}") from error
    try:
        return _ask(question, lambda libc: libc.setns(descriptor, _CLONE_NEWNET))
    finally:
        os.close(descriptor)


def ask_in_namespaces(paths: list[str], question: Callable[[], Any]) -> dict[str, dict[str, Any]]:
    """Ask the same in each of these network namespaces, from one child; return {"answer": ...} or {"error": ...} by path."""
    if not paths:
        return {}
    answers: dict[str, dict[str, Any]] = _ask(
        lambda: {path: _answer_at(path, question) for path in paths}, lambda _libc: 0
    )
    return answers


def _answer_at(path: str, question: Callable[[], Any]) -> dict[str, Any]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return {"error": f"cannot enter network namespace {path}: {error.strerror}"}
    try:
        return _answer(question, lambda libc: libc.setns(descriptor, _CLONE_NEWNET))
    finally:
        os.close(descriptor)


def _ask(question: Callable[[], Any], enter: Callable[[ctypes.CDLL], int]) -> Any:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(json.dumps(_answer(question, enter)).encode())
        finally:
            os._exit(0)  # also for Ctrl-C, of which the parent tells
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(content) if content else {"error": "the process there has died"}
    if "error" in answer:
        raise CniError(NOT_AVAILABLE, "cannot look into a network namespace", answer["error"])
    return answer["answer"]


def _answer(question: Callable[[], Any], enter: Callable[[ctypes.CDLL], int]) -> dict[str, Any]:
    if enter(ctypes.CDLL(None, use_errno=True)):
        return {"error": os.strerror(ctypes.get_errno())}
    try:
        return {"answer": question()}
    except CniError as error:
        return {"error": f"{error.message} {error.details}"}
    except Exception as error:  # noqa: BLE001 - the parent reports it
        return {"error": repr(error)}
