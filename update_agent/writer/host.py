"""What the writer knows of the host it runs on before anybody asked it for anything.

Found once, by the kernel's word and that of the booted image. No caller can say anything about it.
"""

from dataclasses import dataclass
from pathlib import Path

from update_agent.core import release
from update_agent.core.version import Version
from update_agent.host import identity, udev


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The disk, the partition that was booted, and what runs."""

    disk: Path
    booted: int
    product: str
    version: Version
    architecture: str

    @property
    def as_asked(self) -> release.Host:
        """The same, as what a release may depend on."""
        return release.Host(
            product=self.product,
            architecture=self.architecture,
            version=self.version,
            machine_id="",  # places in rollouts are not the writer's business
        )


def this_host() -> Host:
    """Return the host that this process runs on. Raises HostError, VersionError."""
    booted = udev.booted_partition()
    product, version = identity.image()
    return Host(
        disk=booted.disk,
        booted=booted.number,
        product=product,
        version=Version(version),
        architecture=identity.architecture(),
    )
