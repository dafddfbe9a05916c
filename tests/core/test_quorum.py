"""Whether etcd stands a reboot: tables worked out by hand, and all small clusters whole."""

import itertools

import pytest

from update_agent.core.quorum import Standing, quorum
from update_agent.core.reason import Reason


def members(*words: str) -> list[Standing]:
    """Return members from words like ``me``, ``well``, ``ill``, ``behind`` and ``learner``."""
    index = {"me": 9000, "ill": None, "behind": 3999}
    return [
        Standing(
            name=f"m{at}",
            mine="me" in word,
            learner="learner" in word,
            index=index.get(word, 9000),
        )
        for at, word in enumerate(words)
    ]


@pytest.mark.case(92)
@pytest.mark.parametrize(
    ("words", "waits"),
    [
        pytest.param("me", True, id="the-only-one"),
        pytest.param("me well", True, id="one-of-two"),
        pytest.param("me well well", False, id="one-of-three"),
        pytest.param("me well ill", True, id="three-and-one-is-ill"),
        pytest.param("me well behind", True, id="three-and-one-catches-up"),
        pytest.param("me well well ill", True, id="four-and-one-is-ill"),
        pytest.param("me well well well ill", False, id="five-and-one-is-ill"),
        pytest.param("me well well ill ill", True, id="five-and-two-are-ill"),
        pytest.param("me well learner", True, id="a-learner-has-no-vote"),
        pytest.param("me well well learner", False, id="a-learner-needs-none"),
        pytest.param("me-learner well ill", False, id="this-host-has-no-vote"),
        pytest.param("me me well well well", False, id="two-of-five-on-this-host"),
        pytest.param("me me well", True, id="two-of-three-on-this-host"),
        pytest.param("well well ill", False, id="not-a-member"),
        pytest.param("ill ill ill", False, id="not-a-member-and-all-are-ill"),
    ],
)
def test_a_member_waits_when_its_reboot_costs_the_quorum(words: str, *, waits: bool) -> None:
    wait = quorum(members(*words.split()))

    assert (wait is not None) == waits
    assert wait is None or wait.reason is Reason.QUORUM


def test_the_sentence_counts_and_names_who_is_ill() -> None:
    wait = quorum(members("me", "well", "ill"))

    assert wait
    assert wait.sentence == (
        "this host is a member of etcd, which has 3, and needs 2; without this host 1 would be"
        " left, for these are not well: m2"
    )


def test_who_lags_behind_by_as_much_as_is_allowed_is_well() -> None:
    foremost = Standing(name="a", index=10_000)

    mine = Standing(name="b", index=10_000, mine=True)

    assert quorum([foremost, mine, Standing(name="c", index=5_000)]) is None
    assert quorum([foremost, mine, Standing(name="c", index=4_999)])


def test_in_no_cluster_of_up_to_five_a_reboot_leaves_less_than_a_majority() -> None:
    for count in range(1, 6):
        for words in itertools.product(("well", "ill", "learner"), repeat=count - 1):
            voters = 1 + sum(it != "learner" for it in words)
            left = sum(it == "well" for it in words)

            assert (quorum(members("me", *words)) is None) == (2 * left > voters), words
