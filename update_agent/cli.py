"""What every program's ``main`` does alike: tell an expected failure from a bug, and exit with it.

0  done
1  a bug, with its traceback
2  wrong usage
3  a release or payload cannot be trusted or used (ReleaseError)
4  the disk, network or system failed, or its state forbids it (HostError)
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence

from update_agent import __version__
from update_agent.errors import UpdateAgentError

EXIT_CODES = """\
exit codes: 0 done; 2 wrong usage; 3 the release or payload cannot be trusted or used;
4 the disk, the network or the system failed, or its state forbids what was asked for"""


def parser(program: str, description: str, epilog: str = "") -> ArgumentParser:
    """Return a parser with what all programs share: --version, examples, exit codes."""
    made = ArgumentParser(
        prog=program,
        description=description,
        epilog=f"{epilog}\n\n{EXIT_CODES}" if epilog else EXIT_CODES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return made


def run(command: ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse ``argv``, call the chosen verb's ``run`` with the result, and return the exit code."""
    options = command.parse_args(argv)
    verb: Callable[..., int] = options.run
    try:
        return verb(options)
    except UpdateAgentError as error:
        return complain(command.prog, error)
    except BrokenPipeError:  # the reader of our output, such as head(1), has seen enough
        sys.stderr.close()
        return 0


def complain(program: str, error: UpdateAgentError) -> int:
    """Print ``error`` with its way out and return its exit code."""
    print(f"{program}: {error}", file=sys.stderr)
    if error.hint:
        print(f"({error.hint})", file=sys.stderr)
    return error.exit_code
