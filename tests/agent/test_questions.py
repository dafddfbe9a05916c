"""Questions in threads: answered, failed, and given up."""

import asyncio
import threading

import pytest

from update_agent.agent.questions import Questions


def test_an_answer_and_a_failure_reach_who_asked() -> None:
    async def ask() -> None:
        questions = Questions()
        assert await questions.ask(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await questions.ask(divmod, 7, 0)
        assert len(questions) == 0

    asyncio.run(ask())


def test_nobody_waits_for_what_was_given_up_and_a_late_answer_hurts_nobody() -> None:
    late, heard = threading.Event(), threading.Event()

    def question() -> None:
        late.wait(60)
        heard.set()

    async def ask() -> None:
        questions = Questions()
        waiting = asyncio.ensure_future(questions.ask(question))
        await asyncio.sleep(0)
        assert len(questions) == 1
        questions.give_up()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(ask())
    assert not heard.is_set()
    late.set()
    assert heard.wait(60)
