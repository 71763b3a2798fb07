"""Container images without a registry: archives in the OCI layout, each with one layer and a command."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

PAUSE = "localhost/pause:1"
SERVER = "localhost/server:1"
_TYPE = "application/vnd.oci.image"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_images(root: Path, directory: Path) -> dict[str, Path]:
    """Write the archives of both images, with the files of the archive `root`, and return them by name."""
    commands = {PAUSE: ["/bin/sleep", "infinity"], SERVER: ["/bin/server"]}
    archives = {}
    for number, (name, command) in enumerate(commands.items()):
        archives[name] = directory / f"image{number}.tar"
        write_image(archives[name], name, root.read_bytes(), command)
    return archives


def write_image(archive: Path, name: str, layer: bytes, command: list[str]) -> None:
    """Write an image; `layer` is a tar archive."""
    with tarfile.open(archive, "w") as tar:
        layers = [_add_blob(tar, f"{_TYPE}.layer.v1.tar", layer)]
        configuration = {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Entrypoint": command},
            "rootfs": {"type": "layers", "diff_ids": [layers[0]["digest"]]},
        }
        manifest = _document(
            "manifest", config=_add_blob(tar, f"{_TYPE}.config.v1+json", _json(configuration)), layers=layers
        )
        described = _add_blob(tar, f"{_TYPE}.manifest.v1+json", _json(manifest))
        described["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", _json(_document("index", manifests=[described])))


def _document(kind: str, **content: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": f"{_TYPE}.{kind}.v1+json", **content}


def _add_blob(tar: tarfile.TarFile, media_type: str, content: bytes) -> dict[str, Any]:
    """Add a blob, named by its digest, and return its descriptor."""
    digest = hashlib.sha256(content).hexdigest()
    _add(tar, f"blobs/sha256/{digest}", content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()
