"""``update-agent-image build``: from packages to a slot image, in one step.

Root tree, erofs, kernel with its initramfs, and all of it sealed. The same recipe, package lists
and version give the same bytes: every time, order and number is fixed, and what is random in
packages (host keys, machine-id) is made at a host's first boot.
"""

import json
import os
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from update_agent.errors import HostError
from update_agent.publish import debian, initramfs, seal, tree, uki
from update_agent.publish.cache import CACHE
from update_agent.publish.progress import Tell, silent, teller
from update_agent.publish.recipe import Recipe
from update_agent.publish.tree import Release

_STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A slot image, and what it is made of."""

    image: Path
    root_hash: str
    sizes: dict[str, int] = field(default_factory=dict)


def build(
    release: Release, output: Path, *, cache: Path, tell: Tell, init: bytes | None = None
) -> Built:
    """Make the slot image ``output``. Raises HostError, ReleaseError.

    ``init`` takes the place of the initramfs' program.
    """
    recipe = Recipe.load()
    base = debian.base_root(recipe, cache, tell)
    wheels = debian.wheels(recipe, cache, tell)
    init = init or initramfs.compile_init(recipe.init)
    return derive(recipe, release, output, base=base, wheels=wheels, init=init, tell=tell)


def derive(
    recipe: Recipe,
    release: Release,
    output: Path,
    *,
    base: Path,
    wheels: Path,
    init: bytes,
    tell: Tell,
) -> Built:
    """Make ``output`` out of a Debian root and wheels that are there. Raises as ``build`` does.

    The work is done beside ``base``, which gives the image its files as hard links.
    """
    try:
        with tempfile.TemporaryDirectory(dir=base.parent, prefix=".building-") as scratch:
            root, kernel = Path(scratch, "root"), Path(scratch, "linux.efi")
            tell("laying out the root")
            tree.assemble(recipe, release, base, wheels, root)
            kernel.write_bytes(_kernel(recipe, base, root, init))
            tell("sealing the slot image")
            root_hash = seal.seal(root, kernel, output)
            sizes = {"image": output.stat().st_size, "kernel": kernel.stat().st_size}
            sizes |= _largest(root)
    except OSError as error:
        raise HostError(
            f"cannot build {output}: {error.filename or base.parent}: {error.strerror or error}"
        ) from error
    return Built(image=output, root_hash=root_hash, sizes=sizes)


def _kernel(recipe: Recipe, base: Path, root: Path, init: bytes) -> bytes:
    """Return the unified kernel image, the root hash left open."""
    (linux,) = base.glob("boot/vmlinuz-*")
    version = linux.name.removeprefix("vmlinuz-")
    modules = initramfs.modules_in_order(base / "usr/lib/modules" / version, recipe.modules)
    try:
        stub = _STUB.read_bytes()
    except FileNotFoundError as error:
        raise HostError(
            f"{_STUB} is missing", hint="it is in Debian's package systemd-boot-efi"
        ) from error
    return uki.make(
        stub,
        {
            ".osrel": (root / "usr/lib/os-release").read_bytes(),
            ".cmdline": " ".join(recipe.command_line).encode() + b"\0",
            ".linux": linux.read_bytes(),
            ".initrd": initramfs.make(init, modules),
        },
    )


def _largest(root: Path, count: int = 12) -> dict[str, int]:
    """Return the largest files and folders of modules in ``root``, by size."""
    sizes: dict[str, int] = {}
    for folder, _, names in os.walk(root):
        here = Path(folder).relative_to(root)
        for name in names:
            path = here / name
            key = "/".join(path.parts[:3]) if "modules" in path.parts[:3] else str(path)
            sizes[key] = sizes.get(key, 0) + (root / path).lstat().st_size
    return dict(sorted(sizes.items(), key=lambda item: -item[1])[:count])


# The verb ----------------------------------------------------------------------------------------


def add_options(verb: ArgumentParser) -> None:
    """Declare the options of ``build``."""
    verb.add_argument("--version", dest="release", required=True, metavar="X.Y.Z",
                      help="the release's version, for os-release")  # fmt: skip
    verb.add_argument("--product", default="update-agent-os", metavar="NAME",
                      help="the product's name, for os-release (default: %(default)s)")  # fmt: skip
    verb.add_argument("--root", type=Path, metavar="ROOT.JSON",
                      help="the trusted root of the repository that hosts follow (default: each is "
                      "told at its first boot)")  # fmt: skip
    verb.add_argument("--overlay", type=Path, action="append", default=[], metavar="FOLDER",
                      help="lay these files over the root; may be repeated")  # fmt: skip
    verb.add_argument("--output", type=Path, required=True, metavar="IMAGE",
                      help="the slot image to make")  # fmt: skip
    verb.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER",
                      help="keeps installed packages between builds "
                      "(default: %(default)s)")  # fmt: skip
    verb.add_argument("--json", action="store_true", help="print JSON, and no progress")
    verb.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Build a slot image and say what it is made of."""
    release = Release(
        version=options.release,
        product=options.product,
        trusted_root=options.root,
        overlays=tuple(options.overlay),
    )
    built = build(
        release, options.output, cache=options.cache, tell=silent if options.json else teller()
    )
    if options.json:
        result = {"image": str(built.image), "root_hash": built.root_hash, "bytes": built.sizes}
        print(json.dumps(result))
    else:
        print(*_as_text(built), sep="\n")
    return 0


def _as_text(built: Built) -> Sequence[str]:
    sizes = dict(built.sizes)
    lines = [
        f"{built.image}: {sizes.pop('image') / 1e6:.1f} MB, root hash {built.root_hash}",
        f"{sizes.pop('kernel') / 1e6:8.1f} MB  kernel with initramfs",
    ]
    return lines + [f"{size / 1e6:8.1f} MB  {name}" for name, size in sizes.items()]
