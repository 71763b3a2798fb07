"""Run a CNI call: ADD, DEL, CHECK, GC, STATUS or VERSION. Read, validate, apply, print.

A pod's start waits for this module.
"""

from __future__ import annotations

import time

from ..kernel.stderr import warn
from ..model.attachments import NOWHERE, Attachment
from ..model.errors import INTERNAL, IO_FAILURE, NOT_AVAILABLE, CniError, NeedsFullProgram
from ..nat.manager import NatManager
from ..ports.mappings import parse_port_mappings
from ..state.counters import CallCounter, CounterFile
from . import protocol
from .settings import has_other_backend, outbound_for, read_settings, state_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..model.settings import Settings
    from .protocol import Environment

_NO_NAMESPACE = protocol.Namespace("", NOWHERE, NOWHERE)  # DEL may come after it is gone, and does not need it


def run() -> int:
    """Run one call, and return the exit status: 0, or 1 after printing an error."""
    started_at = time.monotonic()
    version, code, counter, raw = protocol.LATEST, 0, None, b""
    try:
        raw = protocol.read_standard_input()
        # First of all: every answer is in this version, also that the environment is wrong.
        version = protocol.version_of(raw)
        environment = protocol.read_environment()
        if environment.command == "VERSION":
            protocol.print_result(protocol.encode_result(protocol.version_report(raw)))
            return 0
        configuration = protocol.parse_configuration(raw)
        counter = counter_of(configuration, environment.command, started_at)
        protocol.check_version(configuration, environment.command)
        _VERBS[environment.command](environment, configuration, version)
    except CniError as error:
        code = error.code
        protocol.print_result(protocol.encode_result(error.as_result(version)))
    except OSError as error:
        code = IO_FAILURE
        protocol.print_result(protocol.encode_result(_system_failure(error).as_result(version)))
    except Exception as error:  # noqa: BLE001 - a runtime reads an error object, never a traceback
        code = INTERNAL
        protocol.print_result(protocol.encode_result(_internal(error).as_result(version)))
    except NeedsFullProgram as needed:
        needed.request, needed.version = raw, version
        counter = None  # the full program counts the call
        raise
    finally:
        if counter is not None:
            counter.count(code)
    return 1 if code else 0


def refuse(error: CniError, version: str) -> int:
    """Answer with an error in the caller's version, and return the exit status."""
    protocol.print_result(protocol.encode_result(error.as_result(version)))
    return 1


def _add(environment: Environment, configuration: dict[str, Any], version: str) -> None:
    result = protocol.previous_result(configuration, "ADD")
    namespace = protocol.find_namespace(environment)
    with _manager_of(configuration) as manager:
        settings = _settings_of(configuration, manager)
        attachment = read_attachment(environment, configuration, settings, namespace)
        # Before anything changes: what cannot be written must not be found out afterwards.
        answer = protocol.encode_result(protocol.result_in_version(result, version))
        manager.add(attachment, settings)
    protocol.print_result(answer)


def _check(environment: Environment, configuration: dict[str, Any], _version: str) -> None:
    namespace = protocol.find_namespace(environment)
    with _manager_of(configuration) as manager:
        settings = _settings_of(configuration, manager)
        manager.check(
            read_attachment(environment, configuration, settings, namespace),
            follows_default_route=settings.follows_default_route,
        )


def _del(environment: Environment, configuration: dict[str, Any], _version: str) -> None:
    attachment_id = protocol.attachment_id(environment, configuration)
    with _manager_of(configuration) as manager:
        manager.remove(
            attachment_id,
            fallback=lambda: _attachment_without_record(environment, configuration, manager),
        )
        if has_other_backend(configuration, manager.state, attachment_id.network):
            _move_network(configuration, manager)


def _gc(_environment: Environment, configuration: dict[str, Any], _version: str) -> None:
    network = protocol.network_name(configuration)
    valid = protocol.valid_attachments(configuration)
    with _manager_of(configuration) as manager:
        manager.collect_garbage(network, valid, _settings_of(configuration, manager).backend)


def _status(_environment: Environment, configuration: dict[str, Any], _version: str) -> None:
    try:
        with _manager_of(configuration) as manager:
            manager.require_backend(_settings_of(configuration, manager).backend)
    except CniError as error:
        if error.code != IO_FAILURE:
            raise
        # To STATUS, whatever keeps an ADD from working is one and the same: "not available".
        raise CniError(NOT_AVAILABLE, error.message, error.details) from error


_VERBS: dict[str, Callable[[Environment, dict[str, Any], str], None]] = {
    "ADD": _add,
    "DEL": _del,
    "CHECK": _check,
    "GC": _gc,
    "STATUS": _status,
}


def counter_of(configuration: dict[str, Any], verb: str, started_at: float) -> CallCounter | None:
    """Return the call's counter; None if the network is not named, or `metrics` is not true."""
    metrics = configuration.get("metrics")
    if metrics is not None and metrics is not True:
        return None
    try:
        file = CounterFile(state_of(configuration), protocol.network_name(configuration))
    except CniError:
        return None  # the call itself will fail for the same reason
    return CallCounter(file, configuration.get("backend"), verb, started_at)


def _manager_of(configuration: dict[str, Any]) -> NatManager:
    """Return the NAT Manager for the configuration's state directory."""
    return NatManager(state_of(configuration))


def _settings_of(configuration: dict[str, Any], manager: NatManager) -> Settings:
    """Return the configuration's settings; if the backend has changed, move the network to it."""
    network = protocol.network_name(configuration)
    return read_settings(
        configuration, manager.state, network, lambda settings: manager.move_network(network, settings)
    )


def _move_network(configuration: dict[str, Any], manager: NatManager) -> None:
    """Move the network to its new backend; only warn if that fails, as the DEL itself succeeded."""
    try:
        _settings_of(configuration, manager)
    except CniError as error:
        warn(error)


def read_attachment(
    environment: Environment, configuration: dict[str, Any], settings: Settings, namespace: protocol.Namespace
) -> Attachment:
    """Return the attachment that the call describes; host ports still to be allocated are 0."""
    result = protocol.previous_result(configuration, environment.command)
    endpoints = protocol.endpoints_of(result, environment.interface)
    families = {endpoint.address.family for endpoint in endpoints}
    mappings = parse_port_mappings(configuration, ipv6_localhost=settings.inbound.ipv6_localhost)
    attachment = Attachment(
        protocol.attachment_id(environment, configuration),
        backend=settings.backend,
        netns=environment.netns,
        netns_identity=namespace.identity,
        netns_directory=namespace.directory,
        endpoints=endpoints,
        # The others are for addresses that the container does not have: nothing follows from them.
        port_mappings=[mapping for mapping in mappings if any(map(mapping.serves, families))],
        # Afterwards, the interfaces are on record; without a record, DEL finds rules by their owner.
        outbound=outbound_for(
            settings,
            endpoints,
            follows_default_route=settings.follows_default_route and environment.command == "ADD",
        ),
        inbound=settings.inbound,
        established_timeout_s=settings.established_timeout_s,
        udp_timeouts_s=settings.udp_timeouts_s,
        created_at=time.time(),
    )
    settings.apply_to(attachment)
    return attachment


def _attachment_without_record(
    environment: Environment, configuration: dict[str, Any], manager: NatManager
) -> Attachment | None:
    """Return the attachment that a DEL without a record describes itself; None if it does not."""
    if configuration.get("prevResult") is None:
        return None
    try:
        return read_attachment(environment, configuration, _settings_of(configuration, manager), _NO_NAMESPACE)
    except CniError:
        return None  # ADD would have failed too


def _system_failure(error: OSError) -> CniError:
    """Describe a failed system call for which there is no better message."""
    return CniError(IO_FAILURE, f"a system call failed: {error}", f"In {_location_of(error)}. Try again.")


def _internal(error: Exception) -> CniError:
    """Describe an unexpected exception, with its location, for a bug report."""
    return CniError(
        INTERNAL,
        f"unexpected {type(error).__name__}: {error}",
        f"In {_location_of(error)}. This is a bug in quantum-nat: please report it.",
    )


def _location_of(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}" if trace is not None else "unknown location"
