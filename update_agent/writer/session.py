"""A caller's conversation with the writer: one request after the other, each answered.

Whatever goes wrong is told to the caller, in the family that it belongs to, and logged. A failed
installation, and whoever does not keep to the rules, ends the conversation: nobody knows what he
would say next. Nothing that a caller sends can end the writer.
"""

import logging
from collections.abc import Callable
from typing import assert_never, cast

from update_agent.core.wire import (
    REQUESTS,
    Arm,
    AskState,
    Confirm,
    Disarm,
    Failed,
    Install,
    Message,
    Rollback,
    State,
    WireError,
    sentence,
)
from update_agent.errors import ReleaseError, UpdateAgentError
from update_agent.host.wire import Connection, GoneError
from update_agent.writer.installation import Installation, Terms

IDLE_SECONDS = 60.0
"""How long a caller may have nothing to say."""

ANSWER_SECONDS = 30.0
"""How long a caller may take to hear an answer."""

logger = logging.getLogger(__name__)

Request = AskState | Install | Arm | Disarm | Confirm | Rollback


def converse(terms: Terms, connection: Connection, *, idle_seconds: float = IDLE_SECONDS) -> None:
    """Answer a caller until he leaves, or has to."""
    while True:
        try:
            message, _ = connection.receive(REQUESTS, silence=idle_seconds)
        except GoneError:
            return
        except WireError as error:
            _say(connection, _failed(error))
            return
        answer = _told(terms, connection, cast("Request", message))
        if not _say(connection, answer) or isinstance(answer, Failed):
            return


def _answer(terms: Terms, connection: Connection, request: Request) -> Message:
    slots = terms.slots
    match request:
        case AskState():
            return slots.state()
        case Install():
            return Installation(terms, request, connection).carry_out()
        case Arm():
            return _logged("arm", lambda: slots.arm(connection.has_ended))
        case Disarm():
            return _logged("disarm", slots.disarm)
        case Confirm():
            return _logged("confirm", slots.confirm)
        case Rollback():
            return _logged("rollback", slots.rollback)
        case _:
            assert_never(request)


def _logged(what: str, change: Callable[[], State]) -> State:
    state = change()
    logger.info("%s: %s", what, state.why)
    return state


def _told(terms: Terms, connection: Connection, request: Request) -> Message:
    """Return the answer to a request, or how it failed."""
    what = type(request).__name__.lower()
    if isinstance(request, Install):
        what = f"[{request.attempt}] {what}"
    try:
        return _answer(terms, connection, request)
    except UpdateAgentError as error:
        logger.warning("%s: %s%s", what, error, f" ({error.hint})" if error.hint else "")
        return _failed(error)
    except Exception:
        logger.exception("%s: a bug in the writer", what)
        return Failed(
            family="host",
            kind="HostError",
            message="the writer failed in a way that nobody expected",
            hint="journalctl -u update-agent-writer has the traceback; please report it",
        )


def _failed(error: UpdateAgentError) -> Failed:
    return Failed(
        family="release" if isinstance(error, ReleaseError) else "host",
        kind=type(error).__name__,
        message=sentence(str(error)),
        hint=sentence(error.hint) if error.hint else None,
    )


def _say(connection: Connection, answer: Message) -> bool:
    """Tell the caller; whether he heard it."""
    try:
        connection.send(answer, within=ANSWER_SECONDS)
    except GoneError:
        return False
    return True


def refuse(connection: Connection, error: UpdateAgentError) -> None:
    """Tell a caller why nobody talks to him; who does not listen at once is not told."""
    logger.warning("a caller is refused: %s", error)
    try:
        connection.send(_failed(error), within=0.0)
    except GoneError:
        pass
    finally:
        connection.close()
