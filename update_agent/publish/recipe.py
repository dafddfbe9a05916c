"""What the OS image is made of, as data: packages, the tree laid over them, the kernel's words.

The data stands in ``partition-layout/`` and ``systemd/``, which lie beside the package in a
checkout, and inside it when it was installed from a wheel.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import update_agent
from update_agent.errors import HostError

_PACKAGE = Path(update_agent.__file__).parent


def data(name: str) -> Path:
    """Return the folder ``partition-layout`` or ``systemd``. Raises HostError."""
    for place in (_PACKAGE.parent / name, _PACKAGE / "data" / name):
        if place.is_dir():
            return place
    raise HostError(
        f"the folder {name}/ is missing beside {_PACKAGE}",
        hint="install update-agent from its checkout or its wheel",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The contents of ``image.toml``, and the folder it stands in."""

    folder: Path
    packages: tuple[str, ...]
    purge: tuple[str, ...]
    exclude: tuple[str, ...]
    remove: tuple[str, ...]
    command_line: tuple[str, ...]
    modules: tuple[str, ...]
    links: Mapping[str, str]

    @classmethod
    def load(cls) -> Self:
        """Read the recipe. Raises HostError."""
        folder = data("partition-layout") / "image"
        table = read_toml(folder / "image.toml")
        return cls(
            folder=folder,
            modules=tuple(table["initramfs"]["modules"]),
            links=table["links"],
            **{
                name: tuple(table[name])
                for name in ("packages", "purge", "exclude", "remove", "command_line")
            },
        )

    @property
    def tree(self) -> Path:
        """The files laid over the packages, where they are installed."""
        return self.folder / "tree"

    @property
    def requirements(self) -> Path:
        """The wheels of update-agent on a host, pinned by hash."""
        return self.folder / "requirements.txt"

    @property
    def init(self) -> Path:
        """The source of the initramfs' only program."""
        return self.folder / "init.c"


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file of ours. Raises HostError."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise HostError(f"cannot read {path}: {error}") from error
