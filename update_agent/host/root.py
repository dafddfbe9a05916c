"""The trusted root in a file: what all trust begins with."""

from pathlib import Path

from update_agent.core import trust
from update_agent.core.trust import UntrustedError
from update_agent.errors import HostError, UpdateAgentError


def read_root(path: Path) -> bytes:
    """Return the trusted root in the file ``path``; without it nothing is trusted."""
    hint = "put the repository's root.json there, from a source that you trust"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HostError(
            f"cannot read the trusted root {path}: {error.strerror}", hint=hint
        ) from error
    try:
        trust.trusted_root(data)
    except UpdateAgentError as error:
        raise UntrustedError(f"{path}: {error}", hint=hint) from error
    return data
