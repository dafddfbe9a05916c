"""Versions of releases: SemVer 2.0, as a value that is safe in a path and sorts as it should.

The rule kept here: two versions are equal, or one is newer. SemVer's build metadata (``+...``) has
no place in that order, so it is refused.
"""

from functools import lru_cache, total_ordering

import semver

from update_agent.errors import ReleaseError

MAX_LENGTH = 64
"""Characters; a version is a folder's name, and stands in tables for people."""


class VersionError(ReleaseError):
    """A text is no version."""


@total_ordering
class Version:
    """A version such as ``1.10.0`` or ``2.0.0-rc.1``, immutable.

    ``Version(text)`` raises VersionError for anything that is not one.
    """

    __slots__ = ("_parsed", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._parsed = _parse(text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self.text == other.text

    def __lt__(self, other: "Version") -> bool:
        return self._parsed < other._parsed

    def __hash__(self) -> int:
        return hash(self.text)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Version({self.text!r})"


@lru_cache(maxsize=1024)
def _parse(text: str) -> semver.Version:
    shown = ascii(text if len(text) <= MAX_LENGTH else text[:MAX_LENGTH] + "...")
    if len(text) > MAX_LENGTH:
        raise VersionError(f"version {shown} has {len(text)} characters, wanted {MAX_LENGTH}")
    try:
        if not text.isascii():  # the library takes digits of every script
            raise ValueError(text)  # noqa: TRY301
        parsed = semver.Version.parse(text)
    except ValueError as error:
        raise VersionError(
            f"{shown} is no version", hint="wanted SemVer such as 1.10.0 or 2.0.0-rc.1"
        ) from error
    if parsed.build:
        raise VersionError(
            f"version {shown} carries build metadata, which has no order",
            hint="count the patch number up, or use a pre-release such as 1.2.0-rc.1",
        )
    return parsed
