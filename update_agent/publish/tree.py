"""The root of one release: the Debian root, with our files, update-agent and the version laid over.

Derived with hard links, so it takes seconds and no space; a file is replaced, and never written to,
because the cache's tree shares its content. Users and enabled units are made by systemd's own tools
as on a host. Who builds, with which umask and from whose checkout, does not count: everyone may
read what is laid here, and run what is a program.
"""

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import update_agent
from update_agent.core.settings import Update
from update_agent.errors import HostError
from update_agent.host.root import read_root
from update_agent.publish.debian import EPOCH
from update_agent.publish.recipe import Recipe, data
from update_agent.run import run

LIBRARY = Path("usr/lib/update-agent/python")
"""Where update-agent and its wheels are on a host: out of the way of Debian's Python packages."""

PROGRAMS = (
    "update-agentd", "update-agent-writer", "update-agent-confirm", "update-agent-reboot",
    "update-agentctl", "update-agent-slots", "update-agent-firstboot",
)  # fmt: skip
"""What a host needs of our programs; making and publishing releases happens elsewhere."""

TRUSTED_ROOT = Path(Update().root).relative_to("/")
"""Where a host looks for it when nobody said otherwise."""

_LEFT_OUT = ("publish", "server", "data", "man", "__pycache__")
_SYSTEMD = {
    "system": "usr/lib/systemd/system",
    "system-preset": "usr/lib/systemd/system-preset",
    "sysusers.d": "usr/lib/sysusers.d",
    "tmpfiles.d": "usr/lib/tmpfiles.d",
    "dbus-1": "usr/share/dbus-1",
}
"""Where each folder of ``systemd/`` belongs on a host."""
_FOLDERS = (
    "boot", "dev", "home", "media/state", "mnt", "proc", "root", "run", "sys", "tmp", "var",
)  # fmt: skip

_SCRIPT = """\
#!/usr/bin/python3 -IS
import gc
import sys

gc.disable()
sys.path.insert(0, "/{library}")
from {module} import {function}

gc.freeze()
gc.enable()
sys.exit({function}())
"""
"""Nothing that is imported is ever garbage: to look for some takes a fifth of a program's start.
Nothing lies in dist-packages either: to look there takes a third of the interpreter's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What tells one image from another."""

    version: str
    product: str = "update-agent-os"
    trusted_root: Path | None = None
    """The root of the repository whose releases a host takes; None: it is told at first boot."""
    overlays: tuple[Path, ...] = ()
    """Folders laid over everything else: an operator's own files, or a test's."""


def assemble(recipe: Recipe, release: Release, base: Path, wheels: Path, root: Path) -> None:
    """Make the folder ``root``, on the file system of ``base``. Raises HostError."""
    try:
        with _for_everyone():
            _assemble(recipe, release, base, wheels, root)
    except OSError as error:
        raise HostError(
            f"cannot lay out {error.filename or root}: {error.strerror or error}"
        ) from error


@contextmanager
def _for_everyone() -> Iterator[None]:
    """Let no umask take from what we and systemd's tools make meanwhile."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def _assemble(recipe: Recipe, release: Release, base: Path, wheels: Path, root: Path) -> None:
    run(["cp", "--archive", "--link", base, root])
    root.chmod(0o755)
    for pattern in recipe.remove:
        _remove(root, pattern)
    for name in _FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for folder, place in _SYSTEMD.items():
        _lay_over(data("systemd") / folder, root / place)
    _lay_over(recipe.tree, root)
    for name, target in recipe.links.items():
        _link(root / name, target)
    _install_agent(wheels, root)
    if release.trusted_root:
        read_root(release.trusted_root)
        _replace(release.trusted_root, root / TRUSTED_ROOT)
    _name_release(root, release)
    run(["systemd-sysusers", f"--root={root}"])
    run(["systemctl", f"--root={root}", "enable", "--quiet", *_units(recipe)])
    for overlay in release.overlays:
        _lay_over(overlay, root)
    _settle(root)


def _remove(root: Path, pattern: str) -> None:
    for path in list(root.glob(pattern)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _lay_over(source: Path, root: Path, left_out: Collection[str] = ()) -> None:
    """Copy a tree onto another: content, links and who may run it count; all else doesn't."""
    if not source.is_dir():
        raise HostError(f"{source} is no folder")
    for folder, folders, files in os.walk(source, onerror=_raise):
        here = root / Path(folder).relative_to(source)
        _want_inside(here, root)
        folders[:] = [name for name in folders if name not in left_out]
        for name in (*folders, *files):
            path = Path(folder, name)
            if name in left_out:
                continue
            if path.is_dir() and not path.is_symlink():
                _make_folder(path, here / name)
            else:
                _replace(path, here / name)


def _want_inside(folder: Path, root: Path) -> None:
    """Follow no link out of the root: ``srv -> /data`` leads to this machine's own files."""
    if not folder.resolve().is_relative_to(root.resolve()):
        raise HostError(
            f"{folder} is a link out of the root, to {folder.resolve()}",
            hint="lay the files where the link leads",
        )


def _raise(error: OSError) -> None:
    """Let no folder be left out because it can't be read."""
    raise error


def _make_folder(source: Path, target: Path) -> None:
    with _laying(source, target):
        target.mkdir(exist_ok=True, parents=True)


def _replace(source: Path, target: Path) -> None:
    mode = source.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise HostError(
            f"{source} is neither a file nor a folder nor a link", hint="take it out of there"
        )
    if target.is_dir() and not target.is_symlink():
        raise HostError(
            f"cannot lay {source} over {target}: that is a folder", hint="make it a folder as well"
        )
    with _laying(source, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target, follow_symlinks=False)
        if stat.S_ISREG(mode):
            target.chmod(0o755 if mode & 0o100 else 0o644)


@contextmanager
def _laying(source: Path, target: Path) -> Iterator[None]:
    """Name both in an error."""
    try:
        yield
    except OSError as error:
        raise HostError(f"cannot lay {source} over {target}: {error.strerror or error}") from error


def _write(path: Path, content: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(content)
    path.chmod(mode)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _install_agent(wheels: Path, root: Path) -> None:
    library = root / LIBRARY
    _lay_over(wheels, library, ("__pycache__",))
    _lay_over(Path(update_agent.__file__).parent, library / "update_agent", _LEFT_OUT)
    for program in PROGRAMS:
        (point,) = entry_points(group="console_scripts", name=program)
        script = _SCRIPT.format(library=LIBRARY, module=point.module, function=point.attr)
        _write(root / "usr/bin" / program, script, 0o755)
    run([
        "chroot", root, "python3", "-m", "compileall", "-q",
        "--invalidation-mode", "unchecked-hash",
        f"/{LIBRARY}",
    ], environment={"SOURCE_DATE_EPOCH": EPOCH, "PYTHONHASHSEED": "0"})  # fmt: skip


def _name_release(root: Path, release: Release) -> None:
    path = root / "usr/lib/os-release"
    lines = [
        line
        for line in path.read_text().splitlines()
        if not line.startswith(("IMAGE_", "PRETTY_NAME="))
    ]
    lines += [
        f'PRETTY_NAME="{release.product} {release.version}"',
        f"IMAGE_ID={release.product}",
        f"IMAGE_VERSION={release.version}",
    ]
    _write(path, "".join(f"{line}\n" for line in lines))


def _units(recipe: Recipe) -> list[str]:
    """Return the units to enable: ours that ask for it, and the network."""
    units = "usr/lib/systemd/system"
    ours = (*data("systemd").glob("system/*"), *(recipe.tree / units).glob("*"))
    names = {it.name for it in ours if it.is_file() and "[Install]" in it.read_text()}
    return sorted(names | {"systemd-networkd.service", "systemd-resolved.service"})


def _settle(root: Path) -> None:
    """Remove what our tools left behind, and what depends on the day."""
    for name in ("etc/.pwd.lock", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-"):
        (root / name).unlink(missing_ok=True)
    shadow = root / "etc/shadow"
    day = str(int(EPOCH) // 86400)
    fields = [line.split(":") for line in shadow.read_text().splitlines()]
    _write(shadow, "".join(":".join([*it[:2], day, *it[3:]]) + "\n" for it in fields), 0o640)
    os.chown(shadow, 0, _group(root, "shadow"))


def _group(root: Path, name: str) -> int:
    lines = (root / "etc/group").read_text().splitlines()
    return next(int(line.split(":")[2]) for line in lines if line.startswith(f"{name}:"))
