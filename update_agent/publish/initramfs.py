"""The initramfs: one static program, and the kernel modules it loads, in the order it loads them.

A cpio archive in the kernel's ``newc`` format (Documentation/driver-api/early-userspace), written
here: a fixed time, owner and numbering make the same bytes of the same files.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from update_agent.errors import HostError
from update_agent.run import run

_LEVEL = 19
_FOLDER, _FILE = 0o040755, 0o100644
_PROGRAM = 0o100755
_LIST = "modules/list"


def make(init: bytes, modules: Iterable[Path]) -> bytes:
    """Return the compressed initramfs of ``init`` and ``modules``, which are in loading order."""
    entries: list[tuple[str, int, bytes]] = [("init", _PROGRAM, init), ("modules", _FOLDER, b"")]
    names = []
    for number, module in enumerate(modules):
        name = f"modules/{number:02}-{module.name}"
        entries.append((name, _FILE, module.read_bytes()))
        names.append(f"/{name}\n")
    entries.append((_LIST, _FILE, "".join(names).encode()))
    return zstandard.ZstdCompressor(level=_LEVEL).compress(_cpio(entries))


def compile_init(source: Path, *, define: str | None = None) -> bytes:
    """Return the static program made of ``source``. Raises HostError."""
    with tempfile.TemporaryDirectory(prefix="update-agent-init-") as scratch:
        made = Path(scratch, "init")
        run([
            "gcc", "-static", "-Os", "-s",
            "-Wall", "-Wextra", "-Werror",
            f"-ffile-prefix-map={source.parent}=.",
            "-Wl,--build-id=none",
            *([f"-D{define}"] if define else []),
            "-o", made,
            source,
        ])  # fmt: skip
        return made.read_bytes()


def modules_in_order(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of kernel modules and of what they need, each behind what it needs.

    ``folder`` is /usr/lib/modules/VERSION. Modules that are built in have no file. Raises
    HostError for a name that the kernel doesn't know.
    """
    needs = dict(_dependencies(folder))
    built_in = {_name(line) for line in (folder / "modules.builtin").read_text().split()}
    order: dict[Path, None] = {}
    for wanted in names:
        name = wanted.replace("-", "_")
        if name in built_in:
            continue
        if name not in needs:
            raise HostError(f"the kernel in {folder} has no module {wanted}")
        order |= dict.fromkeys(needs[name])
    return list(order)


def _dependencies(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yield each module's name, with its file behind those it needs (modules.dep(5))."""
    for line in (folder / "modules.dep").read_text().splitlines():
        module, _, needed = line.partition(":")
        yield _name(module), [folder / it for it in [*reversed(needed.split()), module]]


def _name(path: str) -> str:
    return Path(path).name.removesuffix(".ko").replace("-", "_")


def _cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    archive = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields)
        archive += name.encode() + b"\0"
        archive += bytes(-len(archive) % 4)
        archive += content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
