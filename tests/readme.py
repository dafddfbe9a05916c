"""README.md as a script: what it says to type, where, and what it says comes of it.

A line after ``$`` is typed on a workstation, one after ``core@host1:~$`` on a host. What needs root
on a workstation takes minutes and machines: ``vm-tests/test_readme.py`` runs it, and what is typed
on hosts; ``tests/test_readme.py`` runs all else.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
"""Where commands are found, as after ``. .venv/bin/activate``."""

WORKSTATION, HOST = "$ ", "core@host1:~$ "


@dataclass(frozen=True, slots=True)
class Command:
    """A line to type, and the lines that are shown to come of it, if any are."""

    where: str
    text: str
    shown: tuple[str, ...]

    @property
    def as_root(self) -> bool:
        return self.where == WORKSTATION and self.text.startswith("sudo ")

    @property
    def exports(self) -> Mapping[str, str]:
        """The variables that it sets for the lines that follow."""
        first, *words = shlex.split(self.text)
        return dict(it.split("=", 1) for it in words) if first == "export" else {}

    def pattern(self) -> "re.Pattern[str]":
        """Return what an output looks like that is as shown: other numbers, hashes and times."""
        return re.compile(r"\n(.*\n)*?".join(map(_like, self.shown)))


_LOOSE = {
    "hash": (r"\b[0-9a-f]{8,}", "[0-9a-f]+"),
    "number": (r"(?<!\w)\d+(?:\.\d+)?(?!\w)", r"[\d.]+"),
    "left_out": (r"\.\.\.", r"\S*"),
    "space": (r" +", r"[ ]+"),
    "other": (r".", ""),
}
"""What is not the same each time: how it is written in README, and what it may be."""

_TOKEN = re.compile("|".join(f"(?P<{name}>{written})" for name, (written, _) in _LOOSE.items()))


def _like(line: str) -> str:
    tokens = _TOKEN.finditer(line.strip())
    return r"[ ]*" + "".join(_LOOSE[str(it.lastgroup)][1] or re.escape(it[0]) for it in tokens)


def blocks(kind: str) -> list[str]:
    """Return what stands in the code blocks of a kind, such as toml."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[Command]:
    """Return all that is typed, from top to bottom."""
    found: list[Command] = []
    for block in blocks("console"):
        for line in block.splitlines():
            where = next((it for it in (HOST, WORKSTATION) if line.startswith(it)), None)
            if where:
                text, *_ = re.split(r"\s+# ", line.removeprefix(where))
                found.append(Command(where, text.strip(), ()))
            elif line:
                last = found.pop()
                found.append(Command(last.where, last.text, (*last.shown, line)))
    return found
