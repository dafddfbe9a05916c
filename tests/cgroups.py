"""A folder that stands for /sys/fs/cgroup: groups that wait as told, and an io.max that keeps."""

from pathlib import Path

from update_agent.host.cgroup import SLICE

_TEXT = """\
some avg10=0.00 avg60=0.12 avg300=0.66 total={}
full avg10=0.00 avg60=0.11 avg300=0.59 total=17
"""


class Cgroups:
    """The groups of a host on which nobody waits yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._total: dict[str, int] = {}
        for name in (SLICE, "init.scope", "system.slice"):
            self.waits(name, 0)
        (root / SLICE / "io.max").touch()
        (root / "cgroup.procs").touch()

    def waits(self, name: str, microseconds: int) -> None:
        """Let a group, made if need be, wait for a while."""
        (self.root / name).mkdir(parents=True, exist_ok=True)
        self._total[name] = self._total.get(name, 0) + microseconds
        (self.root / name / "io.pressure").write_text(_TEXT.format(self._total[name]))

    def vanish(self, name: str) -> None:
        (self.root / name / "io.pressure").unlink()
        (self.root / name).rmdir()
        del self._total[name]

    @property
    def io_max(self) -> str:
        """What was written last; the kernel's forgets what was there before."""
        return (self.root / SLICE / "io.max").read_text()
