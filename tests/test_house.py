"""The architecture, held: who imports whom, and what the pure core may touch."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "update_agent"
MODULES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT = {
    "errors": set[str](),
    "run": {"errors"},
    "cli": {"errors"},
    "core": {"core", "errors"},
    "host": {"host", "core", "errors", "run"},
}
"""What each part imports of ours. A program: itself, and all of these; never another program."""

LIBRARY = {"server": {"channels", "keys", "repository"}}
"""What a program may import of ``publish``: how a repository is changed, and no command."""

SHARED = set(MAY_IMPORT)

PURE = {
    "__future__", "bisect", "collections", "contextlib", "dataclasses", "datetime", "difflib",
    "enum", "functools", "hashlib", "heapq", "itertools", "json", "math", "operator", "re",
    "string", "struct", "tomllib", "types", "typing", "uuid", "zlib", "zoneinfo",
    "cryptography.exceptions", "cryptography.hazmat.primitives.serialization", "fnmatch",
    "msgspec", "semver", "tuf.api",
}  # fmt: skip
"""What ``core`` may import from outside: nothing that reaches a disk, clock, network or chance.

A name stands for what is below it: of python-tuf, its metadata and not its client.
"""

IMPURE_CALLS = {
    "open", "print", "input", "exec", "eval", "__import__",
    "now", "today", "utcnow", "uuid1", "uuid4", "getnode", "TZPATH", "reset_tzpath",
}  # fmt: skip
"""Builtins and methods of pure-looking modules that do reach out."""


def imports(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide the arrows"
            assert node.module is not None
            if node.module in ("update_agent", "update_agent.publish"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def part_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def calls(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    yield name


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(module: Path) -> None:
    part = part_of(module)
    allowed = MAY_IMPORT.get(part, SHARED | {part}) | {"__version__"}

    of_library = {f"update_agent.publish.{name}" for name in LIBRARY.get(part, ())}
    ours = {
        name.split(".")[1]
        for name in imports(module)
        if name.startswith("update_agent.") and library(name) not in of_library
    }

    assert ours <= allowed, f"{part} imports {ours - allowed}"


def library(name: str) -> str:
    return ".".join(name.split(".")[:3])


@pytest.mark.parametrize("module", sorted(PACKAGE.glob("core/*.py")), ids=lambda path: path.name)
def test_the_core_is_pure(module: Path) -> None:
    outside = {name for name in imports(module) if not name.startswith("update_agent")}

    unknown = {name for name in outside if not is_pure(name)}

    assert not unknown, f"not known to be pure: {unknown}"
    assert not IMPURE_CALLS & set(calls(module))


def is_pure(name: str) -> bool:
    return any(f"{name}.".startswith(f"{pure}.") for pure in PURE)


def test_pure_is_not_what_lies_beside_the_pure() -> None:
    assert is_pure("tuf.api.metadata")
    assert is_pure("collections.abc")
    assert not is_pure("tuf.ngclient")
    assert not is_pure("tuf.apis")
    assert not is_pure("cryptography")


def test_only_run_starts_processes() -> None:
    users = {m.name for m in MODULES if {"subprocess", "pty"} & set(imports(m))}

    assert users <= {"run.py"}


def test_every_module_opens_by_saying_what_it_knows() -> None:
    silent = [m.name for m in MODULES if not ast.get_docstring(ast.parse(m.read_text()))]

    assert silent == []
