"""``update-agent-firstboot``: what a host is told from outside becomes files, early in every boot.

Settings come from systemd credentials and from ``/media/state/config``, where the file wins: the
machine's provider speaks first, whoever runs the host has the last word. What they mean is in
``core/provision.py``. A file is written only when it differs, so a boot with the same settings
changes nothing. Also lets STATE fill the disk, and makes the ssh host key, which no image may
bring along. One step that fails keeps out no other.
"""

import grp
import os
import socket
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from update_agent import cli
from update_agent.core import provision
from update_agent.core.provision import File
from update_agent.errors import HostError
from update_agent.host import state, udev
from update_agent.host.files import replaced
from update_agent.run import run as run_program

_PREFIX = "update-agent."

_EPILOG = """\
settings: hostname, ssh-keys (for user core), server, channel, root (root.json), settings (TOML, as
  in /etc/update-agent; 'update-agentctl config' lists them), etcd (ETCD_* lines), etcd-ca,
  etcd-cert, etcd-key (PEM; by them etcd knows its members and update-agentd), report-token (by
  which update-server knows its fleet)

examples:
  qemu ... -smbios type=11,value=io.systemd.credential:update-agent.hostname=web-1
  echo web-1 > /media/state/config/hostname; update-agent-firstboot"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return cli.run(command(), argv)


def command() -> ArgumentParser:
    """Return what the program can be told."""
    made = cli.parser(
        "update-agent-firstboot", "Apply the configuration that was given from outside.", _EPILOG
    )
    made.add_argument("--credentials", type=Path, default=Path("/run/credentials/@system"),
                         metavar="FOLDER", help="where systemd keeps credentials "
                         "(default: %(default)s)")  # fmt: skip
    made.add_argument("--config", type=Path, default=Path("/media/state/config"),
                         metavar="FOLDER", help="where STATE has settings, one file each "
                         "(default: %(default)s)")  # fmt: skip
    made.add_argument("--root", type=Path, default=Path("/"), metavar="FOLDER",
                         help="write below this folder (default: %(default)s)")  # fmt: skip
    made.set_defaults(run=apply)
    return made


def apply(options: Namespace) -> int:
    """Write what differs, say what was written and what was refused."""
    failed: list[HostError] = []
    with _noted(failed):
        given = _read(options.credentials, _PREFIX) | _read(options.config, "")
        plan = provision.plan(given)
        failed += plan.refused
        for file in plan.files:
            with _noted(failed):
                if _write(options.root, file):
                    print(f"{file.path} written")
    live = options.root == Path("/")
    for step in (_take_hostname, _grow_state, _make_host_key) if live else (_make_host_key,):
        with _noted(failed):
            step(options.root)
    for complaint in failed:
        cli.complain("update-agent-firstboot", complaint)
    return failed[0].exit_code if failed else 0


@contextmanager
def _noted(failed: list[HostError]) -> Iterator[None]:
    """Go on after a step that fails, and remember why it did."""
    try:
        yield
    except HostError as error:
        failed.append(error)
    except OSError as error:
        failed.append(HostError(f"{error.filename or 'the host'}: {error.strerror}"))


def _read(folder: Path, prefix: str) -> dict[str, bytes]:
    """Return the settings in ``folder``; a missing folder has none."""
    if not folder.is_dir():
        return {}
    try:
        return {
            path.name.removeprefix(prefix): path.read_bytes()
            for path in sorted(folder.iterdir())
            if path.name.startswith(prefix) and not path.name.startswith(".") and path.is_file()
        }
    except OSError as error:
        raise HostError(f"cannot read {error.filename}: {error.strerror}") from error


def _write(root: Path, file: File) -> bool:
    """Make ``file`` be there; return whether anything had to be written."""
    path = root / file.path.lstrip("/")
    content = file.content.encode()
    try:
        if path.is_file() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as target:
            if file.group:
                os.fchown(target.fileno(), -1, grp.getgrnam(file.group).gr_gid)
            os.fchmod(target.fileno(), file.mode)  # before there is anything to read
            target.write(content)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error
    except KeyError as error:
        raise HostError(f"cannot write {path}: there is no group {file.group}") from error
    return True


def _take_hostname(root: Path) -> None:
    """Let the kernel know the name now; systemd read the file before we wrote it."""
    name = (root / "etc/hostname").read_text().strip()
    if name and name != socket.gethostname():
        socket.sethostname(name)


def _grow_state(root: Path) -> None:
    if state.grow(udev.booted_partition(root).disk):
        print("STATE grown to the end of the disk")


def _make_host_key(root: Path) -> None:
    """Make the host's ssh key, if there is none or a power cut left a piece of one."""
    key = root / "etc/ssh/ssh_host_ed25519_key"
    try:
        run_program(["ssh-keygen", "-y", "-P", "", "-f", key])
    except HostError:
        key.unlink(missing_ok=True)
        run_program(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key])
