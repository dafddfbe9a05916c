"""``vm-tests/vm``: machines for people. Started in the background, found again by their folder."""

import os
import shutil
import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from machine import Key, Machine, MachineError, Network
from releases import Workshop

from update_agent import cli
from update_agent.errors import HostError
from update_agent.publish.progress import teller

HOME = Path(__file__).resolve().parents[1] / ".cache/vm"

FIRST_PORT = 2222
NETWORK = Network(port=17_700)

_EPILOG = """\
examples:
  sudo vm-tests/vm up           one machine, host1; builds the image if there is none
  sudo vm-tests/vm up 3         three machines on one network, 10.77.0.1 to 10.77.0.3
  sudo vm-tests/vm ssh host2    log in; more words are run there
  sudo vm-tests/vm down --remove    switch off and forget the disks

A new image: vm-tests/vm down --remove, remove .cache/vm/*.img, and up."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    command = cli.parser("vm", "Run the OS image in virtual machines.", _EPILOG)
    verbs = command.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_up(verbs.add_parser("up", help="start machines, and wait until they are up"))
    enter = verbs.add_parser("ssh", help="log in to a machine as user core")
    enter.add_argument("name", nargs="?", default="host1", help="(default: %(default)s)")
    enter.add_argument("words", nargs="*", help="a command to run there")
    enter.set_defaults(run=ssh)
    verbs.add_parser("status", help="show the machines").set_defaults(run=status)
    off = verbs.add_parser("down", help="switch all machines off")
    off.add_argument("--remove", action="store_true", help="forget their disks as well")
    off.set_defaults(run=down)
    return cli.run(command, argv)


def _add_up(verb: ArgumentParser) -> None:
    verb.add_argument("count", nargs="?", type=int, default=1, metavar="N",
                      help="how many machines (default: %(default)s)")  # fmt: skip
    verb.add_argument("--image", type=Path, metavar="IMAGE",
                      help="the slot image to run (default: built once from this "
                      "checkout)")  # fmt: skip
    verb.add_argument("--memory", type=int, default=1024, metavar="MIB",
                      help="of each machine (default: %(default)s)")  # fmt: skip
    verb.set_defaults(run=up)


def up(options: Namespace) -> int:
    """Start machines host1 to hostN that don't run yet, and wait until they are up."""
    if not 1 <= options.count <= 99:
        raise HostError(f"{options.count} machines are no number from 1 to 99")
    HOME.mkdir(parents=True, exist_ok=True)
    tell = teller()
    workshop = Workshop(folder=HOME, tell=tell)
    image = options.image or kept(HOME / "os.img", lambda: workshop.release("1.0.0"))
    disk = kept(HOME / "os.disk", lambda: workshop.disk(image))
    started = []
    for number in range(1, options.count + 1):
        made = machine(number, disk, options.memory)
        if _process(made.folder / "pid", made.folder):
            print(f"{made.name} runs already")
            continue
        made.power_on()
        tell(f"{made.name} is starting; its console: {made.serial_log}")
        started.append(made)
    for made in started:
        try:
            made.wait_until_up()
            if options.count > 1:
                made.join_network()
            made.leave()
        except MachineError as error:
            raise HostError(str(error)) from error
        tell(f"{made.name} is up: vm-tests/vm ssh {made.name}")
    return 0


def ssh(options: Namespace) -> int:
    """Become ssh."""
    found = _named(options.name)
    os.execvp("ssh", [*found.ssh_command(), *options.words])  # noqa: S606  words of our own


def status(_: Namespace) -> int:
    """Show every machine, whether it runs, and how to reach it."""
    machines = list(_all())
    if not machines:
        print("no machines; 'vm-tests/vm up' starts one")
    for found in machines:
        process = _process(found.folder / "pid", found.folder)
        state = f"runs (process {process})" if process else "off"
        print(f"{found.name:8} {state:24} ssh port {found.ssh_port}, {found.address}")
    return 0


def down(options: Namespace) -> int:
    """Cut the power of every machine."""
    for found in _all():
        if _killed(found.folder / "pid", found.folder):
            print(f"{found.name} is off")
        if options.remove:
            shutil.rmtree(found.folder)
    stop_server()
    if options.remove:
        (HOME / "os.disk").unlink(missing_ok=True)
    return 0


def forget(name: str) -> None:
    """Cut the power of a machine, and forget it."""
    folder = HOME / name
    _killed(folder / "pid", folder)
    shutil.rmtree(folder, ignore_errors=True)


def stop_server() -> None:
    """End the web server of ``vm-tests/try``, if it runs."""
    for work in HOME.glob("try-*/depot/nginx"):
        if _killed(work / "pid", work):
            print("the web server is off")


def kept(path: Path, make: Callable[[], Path]) -> Path:
    """Return ``path``; what ``make`` returns becomes it when it isn't there."""
    if not path.exists():
        make().rename(path)
    return path


def machine(
    number: int, disk: Path, memory: int = 1024, credentials: Mapping[str, str] | None = None
) -> Machine:
    """Return the machine with this number."""
    name = f"host{number}"
    return Machine(
        disk=disk,
        folder=HOME / name,
        key=Key.make(HOME),
        name=name,
        number=number,
        ssh_port=FIRST_PORT + number - 1,
        memory=memory,
        credentials=credentials or {},
        network=NETWORK,
    )


def _all() -> Iterator[Machine]:
    for folder in sorted(HOME.glob("host*")):
        yield machine(int(folder.name.removeprefix("host")), HOME / "os.disk")


def _named(name: str) -> Machine:
    for found in _all():
        if found.name == name and _process(found.folder / "pid", found.folder):
            return found
    raise HostError(f"no machine {name} runs", hint="vm-tests/vm status; vm-tests/vm up")


def _killed(file: Path, folder: Path) -> bool:
    """Kill the process whose number is in ``file``; return whether there was one."""
    process = _process(file, folder)
    if process:
        os.kill(process, signal.SIGKILL)
    return process is not None


def _process(file: Path, folder: Path) -> int | None:
    """Return the process whose number is in ``file``, if it is really one with this folder."""
    try:
        process = int(file.read_text())
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return process if str(folder).encode() in command else None
