"""A system bus of our own: a real dbus-daemon with the shipped policy, and callers of every kind.

The policy names the user and group ``update-agent``, which this machine need not have; here others
stand for them, who are on every Debian.
"""

import grp
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
POLICY = ROOT / "systemd/dbus-1/system.d/org.updateagent.Agent1.conf"

DAEMON, GROUP = "daemon", "games"
"""Who stand for the daemon's user, and for the group that may change things."""
GROUP_ID = grp.getgrnam(GROUP).gr_gid

_CONFIG = """\
<busconfig>
 <type>system</type>
 <listen>unix:path={socket}</listen>
 <auth>EXTERNAL</auth>
 <policy context="default">
  <allow user="*"/>
  <deny own="*"/>
  <deny send_type="method_call"/>
  <allow send_type="signal"/>
  <allow send_requested_reply="true" send_type="method_return"/>
  <allow send_requested_reply="true" send_type="error"/>
  <allow receive_type="method_call"/>
  <allow receive_type="method_return"/>
  <allow receive_type="error"/>
  <allow receive_type="signal"/>
  <allow send_destination="org.freedesktop.DBus"/>
 </policy>
 <policy user="root">
  <allow own="org.freedesktop.login1"/>
  <allow send_destination="org.freedesktop.login1"/>
 </policy>
 <includedir>{policies}</includedir>
</busconfig>
"""
"""As Debian's system.conf, as far as it matters here."""

_LAX = """\
<busconfig><policy context="default">
 <allow own="org.updateagent.Agent1"/>
 <allow send_destination="org.updateagent.Agent1"/>
</policy></busconfig>
"""
"""A policy as a careless operator may write one."""


@dataclass
class Bus:
    """A bus that can be stopped and started."""

    folder: Path
    lax: bool = False
    _process: "subprocess.Popen[str] | None" = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"unix:path={self.folder / 'socket'}"

    def start(self) -> None:
        policies = self.folder / "policies"
        policies.mkdir(exist_ok=True)
        policy = POLICY.read_text().replace('user="update-agent"', f'user="{DAEMON}"')
        policy = policy.replace('group="update-agent"', f'group="{GROUP}"')
        (policies / "ours.conf").write_text(_LAX if self.lax else policy)
        config = self.folder / "bus.conf"
        config.write_text(_CONFIG.format(socket=self.folder / "socket", policies=policies))
        with suppress(FileNotFoundError):
            (self.folder / "socket").unlink()
        self._process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile",
             "--print-address"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout
        assert self._process.stdout.readline(), "dbus-daemon did not start"

    def stop(self) -> None:
        assert self._process
        self._process.kill()
        self._process.communicate()


@contextmanager
def private_bus(*, lax: bool = False) -> Iterator[Bus]:
    folder = Path(tempfile.mkdtemp(prefix="bus-"))
    folder.chmod(0o755)  # other users' too
    bus = Bus(folder, lax)
    bus.start()
    try:
        yield bus
    finally:
        bus.stop()
        shutil.rmtree(folder)


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    with private_bus() as started:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", started.address)
        yield started


@dataclass(frozen=True)
class Caller:
    """Somebody on this machine."""

    uid: int = 0
    groups: Sequence[int] = (0,)

    def runs(
        self, code: str, environment: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run Python as this caller, all modules loaded before that."""
        return subprocess.run(
            [sys.executable, "-c", _AS_CALLER.format(caller=self, code=code)],
            env={**os.environ, **(environment or {})}, cwd=ROOT,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def types(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run update-agentctl as this caller."""
        return self.runs(f"from update_agent.ctl.main import main; sys.exit(main({[*words]!r}))")


_AS_CALLER = """\
import asyncio, os, sys
from update_agent.ctl.main import command
command()
os.setgroups({caller.groups!r})
os.setgid({caller.groups[0]})
os.setuid({caller.uid})
{code}
"""

ROOT_USER = Caller()
MEMBER = Caller(pwd.getpwnam(GROUP).pw_uid, (GROUP_ID,))
OUTSIDER = Caller(65534, (65534,))
