"""The one door to other programs, and the only user of ``subprocess``.

A list of words, never a shell; the C locale and a fixed PATH; no input; a time limit; and when the
program fails, an error that says what it said.
"""

import subprocess
from collections.abc import Sequence
from os import PathLike
from shlex import join

from update_agent.errors import HostError

_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"}


def run(command: Sequence[str | PathLike[str]], *, timeout: float = 600) -> str:
    """Run ``command`` and return what it printed. ``timeout`` is in seconds. Raises HostError."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(  # noqa: S603  a list of words; callers make them from checked values
            words,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        )
    except FileNotFoundError as error:
        raise HostError(
            f"{words[0]} is not installed", hint=f"it is needed for: {join(words)}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{words[0]} took longer than {timeout:.0f} s: {join(words)}") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip() or "nothing said"
        raise HostError(
            f"{words[0]} failed ({error.returncode}): {said}", hint=join(words)
        ) from error
    return done.stdout
