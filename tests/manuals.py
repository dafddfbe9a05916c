"""The manual pages: each program's from its own parser, update-agent.toml's from the settings.

``python -m tests.manuals`` writes them anew into ``update_agent/man/``, from where the wheel puts
them under ``share/man``; a test fails while one is behind its source.
"""

import ast
import inspect
import re
import textwrap
from argparse import SUPPRESS, Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import update_agent
from update_agent import cli
from update_agent.agent import main as agentd
from update_agent.core import settings
from update_agent.ctl import confirm, first_boot, reboot, recovery
from update_agent.ctl import main as ctl
from update_agent.host import config
from update_agent.publish import image
from update_agent.publish import main as publish
from update_agent.server import main as server
from update_agent.writer import main as writer

FOLDER = Path(update_agent.__file__).parent / "man"

USER, FORMAT, ADMIN = 1, 5, 8
"""Sections of the manual: commands, file formats, system administration."""

PROGRAMS = (
    (USER, ctl.command),
    (USER, image.command),
    (USER, publish.command),
    (ADMIN, agentd.command),
    (ADMIN, confirm.command),
    (ADMIN, first_boot.command),
    (ADMIN, reboot.command),
    (ADMIN, recovery.command),
    (ADMIN, server.command),
    (ADMIN, writer.command),
)

SETTINGS = "update-agent.toml"


def pages() -> dict[Path, str]:
    """Return every page by where it stands."""
    made = [(section, command()) for section, command in PROGRAMS]
    names = {it.prog: section for section, it in made} | {SETTINGS: FORMAT}
    found = {_path(it.prog, section): _program(it, section, names) for section, it in made}
    return found | {_path(SETTINGS, FORMAT): _settings(names)}


def _path(name: str, section: int) -> Path:
    return FOLDER / f"man{section}" / f"{name}.{section}"


# A program ----------------------------------------------------------------------------------------


def _program(parser: ArgumentParser, section: int, names: dict[str, int]) -> str:
    verbs = list(_verbs(parser))
    lines = [
        *_head(parser.prog, section, _lower(str(parser.description)).rstrip(".")),
        ".SH SYNOPSIS",
        *(line for verb in verbs or [parser] if not _choices(verb) for line in _usage(verb)),
        ".SH DESCRIPTION",
        _roff(_sentence(parser.description)),
        *_told(str(parser.epilog)),
    ]
    if verbs:
        lines.append(".SH VERBS")
    for verb in verbs:
        lines += [f".SS {_roff(verb.prog.removeprefix(parser.prog).strip())}"]
        lines += [_roff(_sentence(verb.description)), *_options(verb)]
        lines += _told(verb.epilog or "")
    lines += [".SH OPTIONS", *_options(parser)]
    lines.append(".SH EXIT STATUS")
    for code, meaning in cli.EXIT_CODES.items():
        lines += [".TP", f".B {code}", f"{_roff(meaning)}"]
    return _page([*lines, *_see_also(parser.prog, names)])


def _verbs(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """Yield the parsers of all verbs, and of theirs, with what is said of each."""
    for action in _choices(parser):
        for choice in action._choices_actions:
            verb = action.choices[choice.dest]
            verb.description = verb.description or choice.help
            yield verb
            yield from _verbs(verb)


def _choices(parser: ArgumentParser) -> "list[_SubParsersAction[ArgumentParser]]":
    return [it for it in parser._actions if isinstance(it, _SubParsersAction)]


def _usage(parser: ArgumentParser) -> Iterator[str]:
    """Yield how a verb is typed, options in square brackets and what one replaces in italics."""
    yield f".SY {_roff(parser.prog.split()[0])}"
    yield from (rf".B {_roff(word)}" for word in parser.prog.split()[1:])
    formatter = parser._get_formatter()
    formatter._width = 10_000
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    usage = " ".join(formatter.format_help().removeprefix("usage:").split())
    usage = usage.removeprefix(parser.prog).replace("[-h]", "").strip()
    if usage:
        yield _placed(usage)
    yield ".YS"


def _placed(usage: str) -> str:
    return re.sub(r"(?<![\w-])[A-Z][A-Z-]+\b", lambda it: rf"\fI{it[0]}\fR", _roff(usage))


def _options(parser: ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.dest != "help" and not isinstance(action, _SubParsersAction):
            yield from (".TP", _spelled(action, parser), _roff(_help(action, parser)))


def _spelled(action: Action, parser: ArgumentParser) -> str:
    formatter = parser._get_formatter()
    values = "" if action.nargs == 0 else formatter._format_args(action, action.dest.upper())
    if not action.option_strings:
        return rf"\fI{_roff(values)}\fR"
    names = ", ".join(rf"\fB{_roff(name)}\fR" for name in action.option_strings)
    return rf"{names} \fI{_roff(values)}\fR" if values else names


def _help(action: Action, parser: ArgumentParser) -> str:
    if action.help in (None, SUPPRESS):
        raise ValueError(f"{parser.prog}: {action.dest} has no help")
    return parser._get_formatter()._expand_help(action)


def _told(epilog: str) -> Iterator[str]:
    """Yield what an epilog says, but exit codes: text filled, what is indented as it is."""
    for block in epilog.split("\n\n"):
        if not block or block.startswith("exit codes"):
            continue
        yield ".PP"
        as_it_is = False
        for line in block.splitlines():
            if line.startswith("  ") is not as_it_is:
                as_it_is = not as_it_is
                yield ".EX" if as_it_is else ".EE"
            yield _roff(line)
        if as_it_is:
            yield ".EE"


# The settings -------------------------------------------------------------------------------------


def _settings(names: dict[str, int]) -> str:
    lines = [
        *_head(SETTINGS, FORMAT, "settings of update-agentd and update-agent-writer"),
        ".SH SYNOPSIS",
        *(line for it in config.FOLDERS for line in (f".I {_roff(f'{it}/*.toml')}", ".br")),
        ".SH DESCRIPTION",
        _ORDER,
        r".B update\-agentctl config",
        "shows every setting with the file that it comes from.",
        ".PP",
        'Amounts of bytes are written as "20M", lengths of time as "30m"; none is not set.',
    ]
    defaults = settings.Settings()
    for section in fields(defaults):
        part = getattr(defaults, section.name)
        told = _attributes(type(part))
        lines += [f".SH [{section.name}]", _roff(_sentence(inspect.getdoc(type(part))))]
        for one in fields(part):
            value = settings.text(getattr(part, one.name))
            lines += [".TP", rf"\fB{_roff(one.name)}\fR = {_roff(value)}", _roff(told[one.name])]
    lines += [
        ".SH EXAMPLES", ".EX", *(_roff(it) or ".sp" for it in _EXAMPLE.splitlines()), ".EE",
        *_see_also(SETTINGS, names),
    ]  # fmt: skip
    return _page(lines)


_ORDER = """\
TOML files, read in the order of their names, whatever their folder. A later one wins, setting by
setting; a file in /etc or /run hides the one of the same name in /usr/lib. A name that is not known
is an error."""

_EXAMPLE = """\
# /etc/update-agent/50-site.toml
[update]
repository = ["https://updates.example.com"]

[reboot]
strategy = "lock"
windows = ["Mon..Fri 22:00 +6h Europe/Berlin"]

[cluster]
endpoints = ["https://10.0.0.1:2379", "https://10.0.0.2:2379", "https://10.0.0.3:2379"]"""


def _attributes(kind: type) -> dict[str, str]:
    """Return what stands below each attribute in the source of a class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for one, below in zip(body.body, body.body[1:], strict=False):
        match one, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(text))):
                found[name] = " ".join(text.split())
    return found


# Roff ---------------------------------------------------------------------------------------------


def _head(name: str, section: int, told: str) -> list[str]:
    return [
        f'.TH {_roff(name.upper())} {section} "" "update\\-agent {update_agent.__version__}"',
        ".nh",
        ".ad l",
        ".SH NAME",
        rf"{_roff(name)} \- {_roff(told)}",
    ]


def _see_also(name: str, names: dict[str, int]) -> list[str]:
    others = sorted((section, other) for other, section in names.items() if other != name)
    *most, last = (f".BR {_roff(other)} ({n})" for n, other in others)
    return [".SH SEE ALSO", *(f"{it}," for it in most), last]


def _page(lines: Iterable[str]) -> str:
    return "\n".join(line for line in lines if line) + "\n"


def _sentence(text: str | None) -> str:
    said = " ".join(str(text).replace("``", "").split())
    return said[:1].upper() + said[1:] + ("" if said.endswith((".", "bash)")) else ".")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _roff(text: str) -> str:
    r"""Return ``text`` for roff: hyphens that can be copied, no line that begins a request."""
    said = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{said}" if said.startswith((".", "'")) else said


if __name__ == "__main__":
    for path, page in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page)
