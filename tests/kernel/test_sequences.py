"""A sample of the sequences that tests/unit/nat/test_manager.py runs whole: with the kernel, step by step beside the model."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING

import pytest
from cni_quantum_nat.backends.base import Applied
from cni_quantum_nat.backends.nftables.layout import LAYOUT
from cni_quantum_nat.backends.nftables.provider import NftablesBackend
from tests.sequences import Sequence, show
from tests.simulation import Host, SimulatedBackend

from .peer import inside
from .topology import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from contextlib import ExitStack
    from pathlib import Path

    from cni_quantum_nat.backends.base import Change, Installed, Plan
    from cni_quantum_nat.model.units import Unit

SAMPLE, LENGTH, SEED = 300, 5, 20251


class Both(SimulatedBackend):
    """The model, and beside it the kernel, which gets the same calls: after each, both have the same."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host
        self.units: set[Unit] = set()

    def _kernel(self) -> NftablesBackend:
        return NftablesBackend(self._host.state)

    def holders(self, units: Collection[Unit]) -> tuple[dict[Unit, list[str]], set[Unit]]:
        self.units.update(units)
        expected, expected_shared = super().holders(units)
        found, shared = self._kernel().holders(units)
        assert {u: set(o) for u, o in found.items()} == {u: set(o) for u, o in expected.items()}
        assert shared == expected_shared
        return found, shared

    def apply(self, change: Change) -> Applied:
        self.units.update(unit for installed in change.install for unit in installed.units)
        kernel = self._kernel()
        modelled = self._outcome(lambda: super(Both, self).apply(change))
        applied = self._outcome(lambda: kernel.apply(change))
        assert type(applied) is type(modelled), f"the kernel says {applied!r}, the model {modelled!r}"
        if isinstance(applied, Exception):
            raise applied
        assert isinstance(modelled, Applied)
        undo_in_model, undo_in_kernel = modelled.undo, applied.undo
        self.compare()

        def undo() -> None:
            undo_in_model()
            undo_in_kernel()
            self.compare()

        return Applied(undo, applied.addresses)

    @staticmethod
    def _outcome(call: Callable[[], Applied]) -> Applied | Exception:
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - compared with the other's
            return error

    def differences(self, installed: Installed) -> list[str]:
        """A return path too many differs in the model alone; the record of the attachment tells then."""
        expected, found = super().differences(installed), self._kernel().differences(installed)
        for problem in found:
            assert expected, f"the kernel says {problem}, the model nothing"
        return found

    def rebuild(self, plan: Plan, known: Collection[str], expected: Iterable[Installed] = ()) -> None:
        coming = list(expected)
        super().rebuild(plan, known, coming)
        self._kernel().rebuild(plan, known, coming)
        self.compare()

    def owners(self, network: str) -> set[str]:
        found = self._kernel().owners(network)
        assert found - {"shared"} == super().owners(network)
        return found

    def compare(self) -> None:
        """See that the kernel has what the model has."""
        expected, _ = super().holders(self.units)
        found, _ = self._kernel().holders(self.units)
        held = {unit: set(owners) for unit, owners in found.items()}
        wanted = {unit: set(owners) for unit, owners in expected.items()}
        assert held == wanted, f"the kernel has {show(held)}, the model {show(wanted)}"


class KernelHost(Host):
    """A host whose rules are in a network namespace too."""

    def __init__(self, directory: str, namespace: Namespace) -> None:
        super().__init__(directory)
        self.namespace = namespace
        self.backend: SimulatedBackend = Both(self)

    def flush(self) -> None:
        super().flush()
        self.namespace.run("nft", "flush", "ruleset")

    def age(self) -> None:
        was_older = self.backend.is_older
        super().age()
        if self.backend.is_older and not was_older:
            change = "delete element inet quantum layout {{ {} }}; add element inet quantum layout {{ {} }}"
            self.namespace.run("nft", change.format(LAYOUT, LAYOUT - 1))


def test_the_kernel_and_the_model_agree_on_a_sample_of_sequences(stack: ExitStack, tmp_path: Path) -> None:
    namespace = Namespace("host", stack)
    chosen = random.Random(SEED)  # noqa: S311 - a sample that is the same each time
    for number in range(SAMPLE):
        directory = tmp_path / str(number)
        host = KernelHost(str(directory / "state"), namespace)
        sequence = Sequence(host)
        events = list(sequence.events)
        happened = []
        with inside(namespace.path), host.here():
            for event in chosen.choices(events, k=LENGTH):
                happened.append(event)
                try:
                    sequence.happen(event)
                except AssertionError as violation:
                    pytest.fail(f"after {'; '.join(happened)}: {violation}")
        host.flush()
        shutil.rmtree(directory)
