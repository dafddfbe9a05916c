"""What the daemon makes of an installation's progress."""

import threading

import pytest

from update_agent.agent.ports import Progress
from update_agent.agent.slots import _Watcher
from update_agent.core import wire
from update_agent.host.http import Limits, Network


@pytest.mark.parametrize(
    ("step", "writers", "networks", "wanted"),
    [
        pytest.param("write", None, False, None, id="nothing"),
        pytest.param("write", "the host's work", False, "the host's work", id="the-writers-limit"),
        pytest.param("write", None, True, "network.rate", id="the-networks"),
        pytest.param("write", "limits.ceiling", True, "limits.ceiling", id="both"),
        pytest.param("read back", None, True, None, id="nothing-is-fetched-any-more"),
    ],
)
def test_which_limit_holds_an_installation_back_is_shown(
    step: str, writers: str | None, wanted: str | None, *, networks: bool
) -> None:
    shown: list[Progress] = []
    network = Network(Limits(rate=1000))
    if networks:
        over = threading.Event()
        over.set()
        network.throttle(10_000, over)
    watcher = _Watcher(shown.append, threading.Event(), network)

    watcher.show(wire.Progress(step=step, done=1, size=2, throttled_by=writers))

    assert [it.throttled_by for it in shown] == [wanted]
