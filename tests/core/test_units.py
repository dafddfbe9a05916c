"""Lengths of time and amounts of bytes as people write them."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent.core import units
from update_agent.core.units import UnitError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("90s", 90), ("30m", 1800), ("4h", 14_400), ("1d12h", 129_600), ("2w", 1_209_600)],
)
def test_a_length_of_time_is_the_sum_of_its_parts(text: str, seconds: int) -> None:
    assert units.duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "h", "-1h", "1.5h", "1 h", "1y", "٣h", "9999999s", "1h\n"]
)
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(UnitError, match="is no length of time, wanted such as 30m, 4h or 1d12h"):
        units.duration(text)


@given(st.integers(0, 10**8))
def test_a_length_of_time_is_read_as_it_is_written(seconds: int) -> None:
    length = timedelta(seconds=seconds)

    assert units.duration(units.duration_text(length)) == length


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), ("500K", 500_000), ("20M", 20_000_000), ("20MB", 20_000_000),
     ("4Gi", 4_294_967_296), ("1KiB", 1024)],
)  # fmt: skip
def test_an_amount_of_bytes_has_a_decimal_or_binary_unit(text: str, size: int) -> None:
    assert units.size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5M", "1 M", "1m", "1T", "1" * 13, "1M\n"])
def test_what_is_no_amount_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(UnitError, match="is no amount of bytes, wanted such as 500K, 20M or 4Gi"):
        units.size(text)
