"""Lengths of time and amounts of bytes, as people write them in settings and options."""

import re
from datetime import timedelta

from update_agent.errors import HostError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_DURATION = re.compile(r"(?:[0-9]{1,6}[smhdw])+")
_SIZE = re.compile(r"([0-9]{1,12})(K|M|G|Ki|Mi|Gi|)B?")


class UnitError(HostError):
    """A text is no length of time, or no amount of bytes."""


def duration(text: str) -> timedelta:
    """Return the length of time in ``30m``, ``4h`` or ``1d12h``. Raises UnitError."""
    if not _DURATION.fullmatch(text):
        raise UnitError(f"{text!a} is no length of time, wanted such as 30m, 4h or 1d12h")
    parts = re.findall(r"([0-9]+)([smhdw])", text)
    return timedelta(seconds=sum(int(number) * _SECONDS[unit] for number, unit in parts))


def size(text: str) -> int:
    """Return the bytes in ``500K``, ``20M`` or ``4Gi``. Raises UnitError."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise UnitError(f"{text!a} is no amount of bytes, wanted such as 500K, 20M or 4Gi")
    return int(found[1]) * _BYTES[found[2]]


def duration_text(length: timedelta) -> str:
    """Return ``length`` as ``duration`` reads it, whole seconds of it."""
    left, parts = int(length.total_seconds()), []
    for unit in ("d", "h", "m", "s"):
        number, left = divmod(left, _SECONDS[unit])
        parts += [f"{number}{unit}"] if number else []
    return "".join(parts) or "0s"
