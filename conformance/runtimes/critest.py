"""Kubernetes' own tests of a runtime's network, critest, with containerd 2.3 and the plugin: conformance/critest prepares all that."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.kernel.topology import Host

from .containerd import Containerd23
from .images import write_image

_IMAGES = {
    "registry.k8s.io/e2e-test-images/busybox:1.29-2": ["/bin/top"],
    "registry.k8s.io/e2e-test-images/nginx:1.14-2": ["/bin/httpd", "-f", "-p", "80", "-h", "/www"],
}
_COMMANDS = ("sh", "top", "cat", "hostname", "httpd", "sleep")
_FOCUS = "Networking"
_EXPECTED_TESTS = 4  # DNS, host name, a port of the container, a port of the host
_TIMEOUT_S = 600


def main() -> int:
    """Run the tests, print a table, and the sum on the last line."""
    program, plugin = sys.argv[1], Path(os.environ["QUANTUM_NAT_PLUGIN"])
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        host = Host(stack)
        runtime = Containerd23(directory / "containerd", plugin, host)
        stack.callback(runtime.stop)
        runtime.start()
        layer = directory / "layer.tar"
        _write_layer(layer)
        for number, (name, command) in enumerate(_IMAGES.items()):
            archive = directory / f"image{number}.tar"
            write_image(archive, name, layer, command)
            runtime.import_image(name, archive)
        report = directory / "report.json"
        done = subprocess.run(
            [
                *("nsenter", f"--net={host.path}", "--", program, f"--ginkgo.focus={_FOCUS}"),
                *(f"--{kind}-endpoint=unix://{runtime.socket}" for kind in ("runtime", "image")),
                f"--ginkgo.json-report={report}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
        if not report.exists():
            print(done.stdout)
            return 1
        passed, failed = _print_table(json.loads(report.read_text()))
        left = host.installed()
        print(f"containerd {runtime.version()}; elements left behind: {', '.join(sorted(left)) or 'none'}")
        print(f"{passed} passed, {failed} failed")
        return 0 if passed == _EXPECTED_TESTS and not failed and not left else 1


def _write_layer(layer: Path) -> None:
    """Write a root file system: busybox, its names, and a page for the web server."""
    with tarfile.open(layer, "w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for name in _COMMANDS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for directory in ("proc", "sys", "dev", "tmp", "etc"):
            made = tarfile.TarInfo(directory)
            made.type, made.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(made)
        page = tarfile.TarInfo("www/index.html")
        page.size = len(b"served\n")
        tar.addfile(page, io.BytesIO(b"served\n"))


def _print_table(report: list[dict[str, Any]]) -> tuple[int, int]:
    """Print what was run; return how many tests passed, and how many did not."""
    specs = [spec for suite in report for spec in suite["SpecReports"] if spec["State"] not in ("skipped", "pending")]
    tests = [spec for spec in specs if spec["LeafNodeType"] == "It" or spec["State"] != "passed"]
    for test in tests:
        print(f"| {test['LeafNodeText'] or test['LeafNodeType']:90} | {test['State']:8} |")
        if test["State"] != "passed":
            print(f"  {test.get('Failure', {}).get('Message')}")
    passed = sum(test["State"] == "passed" for test in tests)
    return passed, len(tests) - passed


if __name__ == "__main__":
    sys.exit(main())
