"""Waves as people write them."""

import pytest

from update_agent.core import plan
from update_agent.core.rollout import EVERYONE_NOW, Wave
from update_agent.errors import HostError

HOUR = 3600


def test_each_wave_begins_when_the_one_before_it_ends_unless_it_says_otherwise() -> None:
    assert plan.read("1%:1h 10%:4h@+3h 100%") == (
        Wave(share=10_000, opens=0, length=HOUR),
        Wave(share=100_000, opens=3 * HOUR, length=4 * HOUR),
        Wave(share=1_000_000, opens=7 * HOUR, length=0),
    )


def test_no_waves_are_everyone_at_once() -> None:
    assert plan.read(" ") == EVERYONE_NOW


@pytest.mark.parametrize("text", ["1%:1h 10%:4h@+3h 100%", "0.0001% 99.9999%:1d12h", "100%"])
def test_waves_are_written_as_they_are_read(text: str) -> None:
    assert plan.text(plan.read(text)) == text


@pytest.mark.case(100)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("0%", "0 % is no share of hosts", id="nobody"),
        pytest.param("101%", "101 % is no share of hosts", id="more-than-all"),
        pytest.param("all", "'all' is no wave", id="words"),
        pytest.param("1%:x", "is no wave", id="no-length"),
        pytest.param("1%:hh", "is no length of time", id="no-number"),
        pytest.param("10% 5%", "a wave up to 5 % follows one up to 10 %", id="backwards"),
        pytest.param("10%:9999w", "is longer than 3660 days", id="long"),
        pytest.param(" ".join(["1%"] * 65), "65 waves, wanted at most 64", id="many"),
    ],
)
def test_what_is_no_plan_is_refused_with_what_is_wanted(text: str, message: str) -> None:
    with pytest.raises(HostError, match=message):
        plan.read(text)
