"""``update-agentctl completion bash``: a completion script, made of the parser itself.

So it knows every verb and option that there is, and nothing has to be kept in step. Images lay it
down as /usr/share/bash-completion/completions/update-agentctl.
"""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable, Iterable, Iterator, Mapping

_SCRIPT = """\
# bash completion for {program}, made by '{program} completion bash'
_{name}() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb= each
    for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $each in -*) ;; *) verb=$each; break ;; esac
    done
    case $verb in
{cases}
        *) COMPREPLY=($(compgen -W "{verbs}" -- "$word")) ;;
    esac
    case ${{COMP_WORDS[COMP_CWORD-1]}} in
{files}) COMPREPLY=($(compgen -f -- "$word")) ;;
    esac
}}
complete -F _{name} {program}
"""

_PATHS = {"FILE", "FOLDER", "FILE-OR-DEVICE"}


def add_options(verb: ArgumentParser, whole: Callable[[], ArgumentParser]) -> None:
    """Add the options of ``completion``; ``whole`` makes the parser with all that there is."""
    verb.add_argument("shell", choices=("bash",), help="which shell")
    verb.set_defaults(run=lambda options: _print(options, whole()))


def _print(_: Namespace, parser: ArgumentParser) -> int:
    print(script(parser), end="")
    return 0


def script(parser: ArgumentParser) -> str:
    """Return the script for ``parser`` and its verbs."""
    verbs = verbs_of(parser)
    takes_path = {
        name
        for verb in _all(verbs.values())
        for action in verb._actions  # noqa: SLF001  there is no public way to ask for options
        if action.metavar in _PATHS
        for name in action.option_strings
    }
    cases = "\n".join(
        f'        {name}) COMPREPLY=($(compgen -W "{" ".join(_words(verb))}" -- "$word")) ;;'
        for name, verb in verbs.items()
    )
    return _SCRIPT.format(
        program=parser.prog,
        name=parser.prog.replace("-", "_"),
        cases=cases,
        verbs=" ".join([*verbs, "--help", "--version"]),
        files="        " + " | ".join(sorted(takes_path)),
    )


def verbs_of(parser: ArgumentParser) -> Mapping[str, ArgumentParser]:
    """Return the verbs of ``parser``."""
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, _SubParsersAction):
            return dict(action.choices)
    return {}


def _all(verbs: Iterable[ArgumentParser]) -> Iterator[ArgumentParser]:
    """Yield ``verbs`` and the verbs of each."""
    for verb in verbs:
        yield verb
        yield from verbs_of(verb).values()


def _words(verb: ArgumentParser) -> list[str]:
    """Return the options of a verb, and what may stand in their place."""
    words: list[str] = []
    for action in verb._actions:  # noqa: SLF001
        if isinstance(action, _SubParsersAction):
            words += [word for sub in action.choices.values() for word in _words(sub)]
        words += [name for name in action.option_strings if name.startswith("--")]
        if not action.option_strings and action.choices:
            words += [str(choice) for choice in action.choices]
    return list(dict.fromkeys(words))
