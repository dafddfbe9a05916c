"""What every program does alike when it ends."""

from argparse import Namespace

import pytest

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
