"""What a runtime calls: ADD, DEL, CHECK, GC, STATUS, VERSION. Read -> validate -> apply -> print."""

from __future__ import annotations

import time

from ..kernel.stderr import warn
from ..model.attachments import Attachment
from ..model.errors import INTERNAL, IO_FAILURE, CniError
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

_NO_NAMESPACE = (0, 0)  # DEL may come when it is gone, and has no use for it


def run() -> int:
    """Answer one call, and return the exit status: 0, or 1 after an error on stdout."""
    started_at = time.monotonic()
    version, code, counter = protocol.LATEST, 0, None
    try:
        environment = protocol.read_environment()
        raw = protocol.read_standard_input()
        if environment.command == "VERSION":
            protocol.print_result(protocol.version_report(raw))
            return 0
        configuration = protocol.parse_configuration(raw)
        counter = counter_of(configuration, environment.command, started_at)
        version = protocol.check_version(configuration, environment.command)
        _VERBS[environment.command](environment, configuration, version)
    except CniError as error:
        code = error.code
        protocol.print_result(error.as_result(version))
    except OSError as error:
        code = IO_FAILURE
        protocol.print_result(_system_failure(error).as_result(version))
    except Exception as error:  # noqa: BLE001 - a runtime reads an error object, never a traceback
        code = INTERNAL
        protocol.print_result(_internal(error).as_result(version))
    finally:
        if counter is not None:
            counter.count(code)
    return 1 if code else 0


def _add(environment: Environment, configuration: dict[str, Any], version: str) -> None:
    result = protocol.previous_result(configuration, "ADD")
    netns_identity = protocol.find_namespace(environment)
    with _manager_of(configuration) as manager:
        settings = _settings_of(configuration, manager)
        attachment = read_attachment(environment, configuration, settings, netns_identity)
        manager.add(attachment, settings)
    protocol.print_result(protocol.result_in_version(result, version))


def _check(environment: Environment, configuration: dict[str, Any], _version: str) -> None:
    netns_identity = protocol.find_namespace(environment)
    with _manager_of(configuration) as manager:
        settings = _settings_of(configuration, manager)
        manager.check(read_attachment(environment, configuration, settings, netns_identity))


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
    with _manager_of(configuration) as manager:
        manager.require_backend(_settings_of(configuration, manager).backend)


_VERBS: dict[str, Callable[[Environment, dict[str, Any], str], None]] = {
    "ADD": _add,
    "DEL": _del,
    "CHECK": _check,
    "GC": _gc,
    "STATUS": _status,
}


def counter_of(configuration: dict[str, Any], verb: str, started_at: float) -> CallCounter | None:
    """Return what counts the call; None where it does not say whose it is, or `metrics` is not true."""
    if configuration.get("metrics", True) is not True:
        return None
    try:
        file = CounterFile(state_of(configuration), protocol.network_name(configuration))
    except CniError:
        return None  # the call itself is about to fail of it
    return CallCounter(file, configuration.get("backend"), verb, started_at)


def _manager_of(configuration: dict[str, Any]) -> NatManager:
    """Return the manager over the configuration's state directory."""
    return NatManager(state_of(configuration))


def _settings_of(configuration: dict[str, Any], manager: NatManager) -> Settings:
    """Return what the configuration asks for; moves the network when it asks for another backend."""
    network = protocol.network_name(configuration)
    return read_settings(
        configuration, manager.state, network, lambda settings: manager.move_network(network, settings)
    )


def _move_network(configuration: dict[str, Any], manager: NatManager) -> None:
    """Move the network; a failure is for its next ADD to report: DEL has done what it was asked for."""
    try:
        _settings_of(configuration, manager)
    except CniError as error:
        warn(error)


def read_attachment(
    environment: Environment, configuration: dict[str, Any], settings: Settings, netns_identity: tuple[int, int]
) -> Attachment:
    """Return what the call asks for; host ports that are to be allocated are 0."""
    result = protocol.previous_result(configuration, environment.command)
    endpoints = protocol.endpoints_of(result, environment.interface)
    attachment = Attachment(
        protocol.attachment_id(environment, configuration),
        backend=settings.backend,
        netns=environment.netns,
        netns_identity=netns_identity,
        endpoints=endpoints,
        port_mappings=parse_port_mappings(configuration, ipv6_localhost=settings.inbound.ipv6_localhost),
        outbound=outbound_for(settings, endpoints),
        inbound=settings.inbound,
        established_timeout_s=settings.established_timeout_s,
        created_at=time.time(),
    )
    settings.apply_to(attachment)
    return attachment


def _attachment_without_record(
    environment: Environment, configuration: dict[str, Any], manager: NatManager
) -> Attachment | None:
    """Read from the call itself what a DEL without a record has to look for; None when it does not say."""
    if configuration.get("prevResult") is None:
        return None
    try:
        return read_attachment(environment, configuration, _settings_of(configuration, manager), _NO_NAMESPACE)
    except CniError:
        return None  # such a call could not have been added either


def _system_failure(error: OSError) -> CniError:
    """Describe what the system refused, where nobody knew more of it."""
    return CniError(IO_FAILURE, f"the system failed: {error}", f"In {_place_of(error)}. Try again.")


def _internal(error: Exception) -> CniError:
    """Describe what should not have happened, with the place, for a report."""
    return CniError(
        INTERNAL,
        f"unexpected {type(error).__name__}: {error}",
        f"In {_place_of(error)}. This is a defect of quantum-nat: please report it.",
    )


def _place_of(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}" if trace is not None else "unknown place"
