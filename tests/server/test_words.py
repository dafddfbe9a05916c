"""What pages say of many hosts at a time."""

import pytest

from update_agent.core.reason import Reason
from update_agent.server.figures import Waiting
from update_agent.server.words import does


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_sentence_for_many_hosts(reason: Reason) -> None:
    said = "what one of them says"
    waiting = Waiting(
        state="waiting", reason=reason, wave=None, hosts=2, sentence=said, until=None
    )  # fmt: skip

    assert said not in does(waiting, 0)
