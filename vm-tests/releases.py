"""Releases and disks for machines: good ones, and ones that fail in a way of their own.

The Debian root is made once and kept in the cache; a release is derived from it in seconds, by
laying files over it. Each is made once for a run.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from update_agent.core.slot import BootFlags, SlotName
from update_agent.publish import build, debian, disk_image, initramfs
from update_agent.publish.cache import CACHE
from update_agent.publish.disk_image import CONFIRMED, Disk
from update_agent.publish.progress import Tell, silent
from update_agent.publish.recipe import Recipe
from update_agent.publish.tree import Release

ON_TRIAL = BootFlags(priority=2, tries=1)
"""Armed, with the last of its tries."""

EMPTY = BootFlags()

Files = Mapping[str, str]
"""Content by path; a script's begins with #!."""

QUIET = {
    f"usr/lib/systemd/system/{unit}.d/lean.conf": "[Unit]\nConditionPathExists=/not-in-this-test\n"
    for unit in (
        "docker.service", "docker.socket", "containerd.service", "etcd.service",
        "apparmor.service", "systemd-resolved.service",
    )
}  # fmt: skip
"""Starts nothing of what takes half of a boot, where it isn't the subject."""

LEAN = QUIET | dict.fromkeys(
    (
        "usr/sbin/dockerd", "usr/bin/docker", "usr/bin/containerd", "usr/bin/etcd",
        "usr/bin/containerd-shim-runc-v2", "usr/sbin/runc",
    ),
    "",
)  # fmt: skip
"""The same, and its programs are empty: an image of two thirds the size."""


SICK = "etc/sick"
"""A file in a release that makes hosts with the check ``HEALTH`` unhealthy."""

HEALTH = f"""\
#!/bin/sh
test ! -e /{SICK} && exit
echo this host is sick >/dev/console
exit 1
"""
"""A check of hosts' people, for health.d; the releases know nothing of it."""


def deadline(seconds: int) -> dict[str, str]:
    """Return what ends a trial sooner than usual, for one that never ends well."""
    timer = f"[Timer]\nOnBootSec=\nOnBootSec={seconds}s\n"
    return {"usr/lib/systemd/system/update-agent-trial.timer.d/soon.conf": timer}


PANICS = LEAN | {
    "usr/lib/systemd/system/panic.service": """\
[Unit]
DefaultDependencies=no

[Service]
ExecStart=/bin/sh -c 'echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger'
""",
    "usr/lib/systemd/system/sysinit.target.d/panic.conf": "[Unit]\nWants=panic.service\n",
}
"""A kernel that panics while user space comes up."""

PID_1_HANGS = {
    "usr/lib/systemd/systemd": "#!/bin/sh\necho PID 1 hangs >/dev/console\nexec sleep infinity\n"
}
"""A PID 1 that does nothing, and feeds no watchdog."""

NEVER_UP = LEAN | {
    "usr/lib/systemd/system/stuck.service": """\
[Unit]
DefaultDependencies=no
Before=basic.target

[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/sleep infinity
""",
    "usr/lib/systemd/system/basic.target.d/stuck.conf": "[Unit]\nRequires=stuck.service\n",
}  # fmt: skip
"""A boot that waits for ever, with nobody to log in."""

NEVER_COMPLETE = LEAN | {
    "usr/lib/systemd/system/check.service": """\
[Unit]
Before=boot-complete.target

[Service]
Type=oneshot
ExecStart=/bin/false
""",
    "usr/lib/systemd/system/boot-complete.target.d/check.conf": "[Unit]\nRequires=check.service\n",
}  # fmt: skip
"""Boots, but a check of its own says that it isn't good."""


WITHOUT_PYTHON = LEAN | {
    f"usr/lib/python3.11/encodings/{name}": "no Python here\n"
    for name in ("__init__.py", "__pycache__/__init__.cpython-311.pyc")
}  # fmt: skip
"""No program of the agent can even begin."""


@dataclass(kw_only=True)
class Workshop:
    """Makes releases and disks in ``folder``, each of them once."""

    folder: Path
    tell: Tell = silent
    cache: Path = CACHE
    _built: dict[str, Path] = field(default_factory=dict)

    def release(self, version: str, files: Files | None = None, *, define: str = "") -> Path:
        """Return the slot image of a release with ``files`` laid over it.

        ``define`` is for the initramfs' program: ``HANG``.
        """
        name = f"{version}-{_digest(files or {})}{define}"
        return self._once(f"{name}.img", lambda path: self._build(version, files, define, path))

    def debian(self) -> Path:
        """Return the folder that every release is derived from."""
        return debian.base_root(Recipe.load(), self.cache, self.tell)

    def disk(
        self,
        a: Path,
        b: Path | None = None,
        *,
        flags: BootFlags = ON_TRIAL,
        size_mib: int = disk_image.DEFAULT_SIZE,
    ) -> Path:
        """Return a disk with a confirmed release in slot A; ``flags`` are those of slot B."""
        slots = {SlotName.A: a} | ({SlotName.B: b} if b else {})
        disk = Disk(
            selector=_selector(),
            slots=slots,
            flags={SlotName.A: CONFIRMED, SlotName.B: flags if b else EMPTY},
        )
        name = f"{a.stem}+{b.stem if b else ''}-{flags}-{size_mib}.disk".replace(" ", "")
        return self._once(
            name,
            lambda path: disk_image.make_file(disk, path, size_mib=size_mib, tell=self.tell),
        )

    def forget(self, path: Path) -> None:
        """Remove what will not be needed again: images are large."""
        self._built.pop(path.name)
        path.unlink()

    def _once(self, name: str, make: Callable[[Path], None]) -> Path:
        if name not in self._built:
            make(self.folder / name)
            self._built[name] = self.folder / name
        return self._built[name]

    def _build(self, version: str, files: Files | None, define: str, output: Path) -> None:
        overlays = []
        if files:
            overlays.append(write_files(files, output.with_suffix(".overlay")))
        init = initramfs.compile_init(Recipe.load().init, define=define) if define else None
        release = Release(version=version, overlays=tuple(overlays))
        build.build(release, output, cache=self.cache, tell=self.tell, init=init)


def write_files(files: Files, folder: Path) -> Path:
    """Write ``files`` below ``folder``; return it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755 if content.startswith("#!") else 0o644)
    return folder


@functools.cache
def _selector() -> Path:
    return disk_image.built_selector(silent)


def _digest(files: Files) -> str:
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:8]
