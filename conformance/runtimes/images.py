"""Container images without a registry: archives in the OCI layout, each with one layer and a command."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

PAUSE = "localhost/pause:1"
SERVER = "localhost/server:1"
_WRITER = Path(__file__).parents[2] / "packaging" / "oci.py"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_images(root: Path, directory: Path) -> dict[str, Path]:
    """Write the archives of both images, with the files of the archive `root`, and return them by name."""
    commands = {PAUSE: ["/bin/sleep", "infinity"], SERVER: ["/bin/server"]}
    archives = {}
    for number, (name, command) in enumerate(commands.items()):
        archives[name] = directory / f"image{number}.tar"
        write_image(archives[name], name, root, command)
    return archives


def write_image(archive: Path, name: str, layer: Path, command: list[str]) -> None:
    """Write an image; `layer` is a tar archive."""
    configuration = json.dumps({"Entrypoint": command})
    image = f"{_ARCHITECTURES.get(platform.machine(), platform.machine())}={layer}"
    subprocess.run([sys.executable, _WRITER, archive, name, configuration, image], check=True)
