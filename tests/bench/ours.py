"""The only place that knows how our own programs are called and what they print."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
IMAGE = BIN / "update-agent-image"
PUBLISH = BIN / "update-publish"


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """What publishing says it wrote."""

    index: Path
    index_bytes: int
    blob_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What applying says it did, in bytes of stored (fetched) and of target data."""

    fetched: int
    copied: int
    kept: int


def can_seal() -> bool:
    return IMAGE.exists()


def can_publish() -> bool:
    return IMAGE.exists() and PUBLISH.exists()


def seal(root: Path, kernel: Path, image: Path) -> None:
    subprocess.run(
        [
            str(IMAGE), "seal",
            "--root", str(root),
            "--kernel", str(kernel),
            "--output", str(image),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def publish_command(
    image: Path, folder: Path, *, level: int | None, source: Path | None = None
) -> list[str]:
    command = [
        str(PUBLISH), "payload", str(image),
        "--output", str(folder),
        "--json",
    ]  # fmt: skip
    if level is not None:
        command += ["--level", str(level)]
    return command if source is None else [*command, "--from", str(source)]


def apply_command(index_url: str, slot: Path, *, source: Path | None = None) -> list[str]:
    command = [str(IMAGE), "apply", "--index", index_url, "--slot", str(slot), "--json"]
    return command if source is None else [*command, "--source", str(source)]


def read_payload(output: str) -> Payload:
    said = _last_object(output)
    return Payload(
        index=Path(said["index"]),
        index_bytes=int(said["index_bytes"]),
        blob_bytes=int(said["blob_bytes"]),
    )


def read_applied(output: str) -> Applied:
    said = _last_object(output)
    return Applied(
        fetched=int(said["fetched_bytes"]),
        copied=int(said["copied_bytes"]),
        kept=int(said["kept_bytes"]),
    )


def _last_object(output: str) -> dict[str, Any]:
    """Return the JSON object that ends ``output``, on one line or on many."""
    text = output.strip()
    for start in (text.rfind("\n{") + 1, text.find("{")):
        try:
            found = json.loads(text[start:])
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    raise ValueError(f"no JSON object at the end of {output[-200:]!r}")
