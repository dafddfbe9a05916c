"""The files that settings are written in: which there are, in which order they count.

``update-agent/*.toml`` in /usr/lib (what came with the image), /etc (what this host's people
write), /run (what holds until the next boot). Files are read sorted by name whatever their folder,
as systemd reads drop-ins; a file hides the one of the same name in an earlier folder.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from update_agent.core.settings import Fragment, Inputs, SettingError, Settings, check, merge

FOLDERS = tuple(Path(folder, "update-agent") for folder in ("/usr/lib", "/etc", "/run"))
"""The earlier hidden by the later."""


def read(folders: Sequence[Path] = FOLDERS) -> Inputs:
    """Return what all files say. Raises SettingError."""
    found = {path.name: path for folder in folders for path in sorted(folder.glob("*.toml"))}
    return merge(_fragment(found[name]) for name in sorted(found))


def settings(folders: Sequence[Path] = FOLDERS) -> Settings:
    """Return the settings of this host. Raises SettingError."""
    return check(read(folders))


def _fragment(path: Path) -> Fragment:
    try:
        return Fragment(origin=str(path), content=tomllib.loads(path.read_text()))
    except OSError as error:
        raise SettingError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"{path} is no TOML: {error}") from error
