"""Expected failures, in two families told apart by who has to act.

A message names the thing, what was found and what was wanted; the way out is the ``hint``.
Misuse by a programmer is no expected failure: it stays ``ValueError`` or ``RuntimeError``.
Only a program's ``main`` turns an error into an exit code.
"""


class UpdateAgentError(Exception):
    """An expected failure, with a message for people and perhaps a way out."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ReleaseError(UpdateAgentError):
    """The offered release or payload cannot be trusted or used: the release team must act."""

    exit_code = 3


class HostError(UpdateAgentError):
    """The disk, the bus, the network or a system tool failed: whoever runs the host must act."""

    exit_code = 4
