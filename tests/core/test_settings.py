"""Settings: fragments laid over one another, checked, and traced to their files."""

from datetime import timedelta
from typing import Any

import pytest

from update_agent.core import settings
from update_agent.core.settings import Fragment, SettingError, Settings, Strategy
from update_agent.core.window import Window

VENDOR = Fragment(
    origin="/usr/lib/update-agent/10-site.toml",
    content={"update": {"repository": ["https://a.example"], "interval": "30m"}},
)
HOST = Fragment(
    origin="/etc/update-agent/50-host.toml",
    content={
        "update": {"repository": ["https://b.example", "http://c.example/x"]},
        "reboot": {"strategy": "lock", "windows": ["Mon..Fri 02:00 +2h Europe/Berlin"]},
        "limits": {"floor": "2M", "pressure": 20},
        "network": {"rate": "10Mi"},
        "cluster": {"endpoints": ["https://etcd.example:2379"], "labels": {"rack": "7"}},
    },
)


def checked(*fragments: Fragment) -> Settings:
    return settings.check(settings.merge(fragments))


def test_without_any_file_everything_has_its_default_and_nothing_is_updated() -> None:
    assert checked() == Settings()
    assert checked().update.repository == ()
    assert checked().reboot.strategy is Strategy.OFF


def test_a_later_file_wins_setting_by_setting() -> None:
    found = checked(VENDOR, HOST)

    assert found.update.repository == ("https://b.example", "http://c.example/x")
    assert found.update.interval == timedelta(minutes=30)
    assert found.reboot.windows == (Window("Mon..Fri 02:00 +2h Europe/Berlin"),)
    assert (found.limits.floor, found.limits.ceiling, found.network.rate) == (
        2_000_000, None, 10_485_760,
    )  # fmt: skip


def test_each_value_is_shown_as_one_would_write_it_with_its_file() -> None:
    inputs = settings.merge([VENDOR, HOST])
    rows = {
        name: (text, origin)
        for name, text, origin in settings.listed(checked(VENDOR, HOST), inputs)
    }

    assert rows["update.interval"] == ("30m", VENDOR.origin)
    assert rows["reboot.strategy"] == ("lock", HOST.origin)
    assert rows["reboot.windows"] == ("[Mon..Fri 02:00 +2h Europe/Berlin]", HOST.origin)
    assert rows["update.automatic"] == ("true", "default")
    assert rows["limits.ceiling"] == ("none", "default")
    assert rows["cluster.labels"] == ("{rack = 7}", HOST.origin)
    assert rows["cluster.deadline"] == ("5s", "default")


@pytest.mark.parametrize(
    ("content", "message", "way_out"),
    [
        ({"reboot": {"strategy": "lock"}},
         "reboot.strategy is lock, and cluster.endpoints is not set",
         "set cluster.endpoints in /etc/update-agent/*.toml, or another reboot.strategy"),
        ({"cluster": {"key": "/k"}}, "cluster.key is /k, and cluster.cert is not set",
         "set cluster.cert in /etc/update-agent/*.toml"),
        ({"cluster": {"user": "u"}}, "cluster.user is u, and cluster.password_file is not set",
         "set cluster.password_file in /etc/update-agent/*.toml"),
        ({"cluster": {"password_file": "/p"}},
         "cluster.password_file is /p, and cluster.user is not set",
         "set cluster.user in /etc/update-agent/*.toml"),
    ],
)  # fmt: skip
def test_a_setting_that_wants_another_one_says_which(
    content: dict[str, Any], message: str, way_out: str
) -> None:
    with pytest.raises(SettingError) as caught:
        checked(Fragment(origin="/etc/x.toml", content=content))

    assert str(caught.value) == f"/etc/x.toml: {message}"
    assert caught.value.hint == way_out


def test_one_file_alone_may_leave_to_another_what_it_wants() -> None:
    inputs = settings.merge([Fragment(origin="a", content={"reboot": {"strategy": "lock"}})])

    assert settings.check_each(inputs).reboot.strategy is Strategy.LOCK


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ({"limits": {"flor": "2M"}}, "there is no limits.flor", "did you mean floor?"),
        ({"limit": {}}, "there is no section [limit]", "did you mean limits?"),
        ({"xyz": {}}, "there is no section [xyz]",
         "known: update, network, reboot, trial, limits, reports, cluster"),
        ({"limits": 3}, "limits is a value, wanted [limits]", None),
        ({"limits": {"floor": "2X"}}, "limits.floor: '2X' is no amount of bytes", None),
        ({"limits": {"floor": "0M"}}, "limits.floor: 0 bytes a second would take for ever", None),
        ({"limits": {"ceiling": "50"}}, "limits.ceiling: 50 bytes a second would take", None),
        ({"limits": {"floor": 2}}, "limits.floor: expected a text, got 2", None),
        ({"limits": {"pressure": 0}}, "limits.pressure: Expected `int` >= 1", None),
        ({"reboot": {"strategy": "now"}}, "reboot.strategy: Invalid enum value 'now'", None),
        ({"reboot": {"windows": ["x"]}}, "reboot.windows: 'x' is no reboot window", None),
        ({"update": {"interval": "soon"}}, "update.interval: 'soon' is no length of time", None),
        ({"update": {"automatic": 1}}, "update.automatic: Expected `bool`, got `int`", None),
        ({"update": {"repository": ["ftp://x"]}}, "update.repository: Expected `str` matching",
         None),
        ({"update": {"channel": "../x"}}, "update.channel: Expected `str` matching", None),
        ({"update": {"root": "root.json"}}, "update.root: Expected `str` matching", None),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_used_names_the_file_to_mend(
    content: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(SettingError) as refused:
        checked(VENDOR, Fragment(origin="/etc/update-agent/60-bad.toml", content=content))

    assert str(refused.value).startswith(f"/etc/update-agent/60-bad.toml: {message}")
    assert refused.value.hint == hint
