"""What every program does alike."""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Iterator

import pytest

from tests.manuals import PROGRAMS
from update_agent import cli
from update_agent.core.version import Version
from update_agent.errors import HostError, ReleaseError


def interrupted(_: Namespace) -> int:
    raise KeyboardInterrupt


def failed_host(_: Namespace) -> int:
    raise HostError("the disk is gone", hint="put it back")


def failed_release(_: Namespace) -> int:
    raise ReleaseError("the release is older than the floor")


@pytest.mark.parametrize(
    ("verb", "code", "said"),
    [
        pytest.param(interrupted, 130, "tool: interrupted\n", id="Ctrl-C"),
        pytest.param(failed_host, 4, "tool: the disk is gone\n(put it back)\n", id="host"),
        pytest.param(
            failed_release, 3, "tool: the release is older than the floor\n", id="release"
        ),
    ],
)
def test_a_program_ends_with_a_sentence_and_the_code_of_who_must_act(
    verb: object, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = cli.parser("tool", "A tool.")
    command.set_defaults(run=verb)

    assert cli.run(command, []) == code
    assert capsys.readouterr().err == said


def test_a_bug_is_not_dressed_up(capsys: pytest.CaptureFixture[str]) -> None:
    def buggy(_: Namespace) -> int:
        raise ZeroDivisionError

    command = cli.parser("tool", "A tool.")
    command.set_defaults(run=buggy)

    with pytest.raises(ZeroDivisionError):
        cli.run(command, [])
    assert capsys.readouterr().err == ""


def test_what_an_option_does_not_take_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.parser("tool", "A tool.")
    command.add_argument("--version-of", type=cli.argument(Version), metavar="VERSION")
    command.set_defaults(run=interrupted)

    assert command.parse_args(["--version-of", "1.2.3"]).version_of == Version("1.2.3")
    with pytest.raises(SystemExit) as ended:
        cli.run(command, ["--version-of", "x"])
    assert ended.value.code == 2
    assert "error: argument --version-of: 'x' is no version" in capsys.readouterr().err


def verbs(command: ArgumentParser) -> Iterator[ArgumentParser]:
    """Yield all verbs of a program, and those of its verbs."""
    for action in command._actions:
        if isinstance(action, _SubParsersAction):
            for verb in action.choices.values():
                yield from verbs(verb) if _has_verbs(verb) else (verb,)


def _has_verbs(command: ArgumentParser) -> bool:
    return any(isinstance(it, _SubParsersAction) for it in command._actions)


def test_every_verb_says_what_it_did_as_json() -> None:
    found = [verb for _, command in PROGRAMS for verb in verbs(command())]
    silent = {it.prog for it in found if "--json" not in it.format_help()}

    assert len(found) > 50
    assert silent == {"update-agentctl completion", "update-server serve"}
