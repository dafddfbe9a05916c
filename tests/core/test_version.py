"""Versions are SemVer, sort as SemVer says, and are safe wherever a name is used."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent.core.version import MAX_LENGTH, Version, VersionError

IN_ORDER = [  # the example of SemVer 2.0, paragraph 11, and what people get wrong
    "0.9.0", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2",
    "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.9.0", "1.10.0", "2.0.0", "10.0.0",
]  # fmt: skip


@pytest.mark.case(20)
def test_versions_sort_by_numbers_and_not_by_letters() -> None:
    versions = [Version(text) for text in IN_ORDER]

    for at, version in enumerate(versions):
        assert all(before < version for before in versions[:at])
        assert not any(after <= version for after in versions[at + 1 :])


@pytest.mark.case(20)
@pytest.mark.parametrize(
    "text",
    [
        "", " ", "1", "1.2", "1.2.3.4", "v1.2.3", "1.2.3 ", "1.2.3\n", "01.2.3", "1.2.-3", "..",
        "../1.2.3", "1.2.3/..", "1.2.3-", "1.2.3-a..b", "1.2.3-01", "1.2.3\0", "\uff11.2.3",
        "1.٢.3", "1.2.3-ä", "latest",
    ],
)  # fmt: skip
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(VersionError, match="is no version") as refused:
        Version(text)

    assert refused.value.hint == "wanted SemVer such as 1.10.0 or 2.0.0-rc.1"


@pytest.mark.case(20)
def test_a_long_version_is_refused_without_being_shown_whole() -> None:
    with pytest.raises(VersionError, match=r"10005 characters, wanted 64") as refused:
        Version("1.2." + "3" * 10_001)

    assert len(str(refused.value)) < 2 * MAX_LENGTH


def test_build_metadata_has_no_order_and_is_refused() -> None:
    with pytest.raises(VersionError, match=r"1\.2\.3\+7' carries build metadata"):
        Version("1.2.3+7")


@given(st.text(max_size=80))
def test_what_is_accepted_is_safe_in_a_path(text: str) -> None:
    with contextlib.suppress(VersionError):
        assert str(Version(text)) == text
        assert set(text) <= set("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-")
        assert ".." not in text


def test_equal_versions_are_one_key() -> None:
    assert len({Version("1.2.3"), Version("1.2.3"), Version("1.2.4")}) == 2
    assert Version("1.2.3") != "1.2.3"
    assert repr(Version("1.2.3")) == "Version('1.2.3')"
