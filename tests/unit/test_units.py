import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet import units


@pytest.mark.parametrize(
    ("text", "ms"), [("5 ms", 5.0), ("1.5s", 1500.0), ("250 us", 0.25), ("250 µs", 0.25), ("3e3 ns", 0.003)]
)
def test_a_duration_is_read_with_its_unit(text, ms):
    assert units.parse_milliseconds(text) == pytest.approx(ms)


@pytest.mark.parametrize(
    ("text", "n"), [("96 KiB", 98304), ("1.5 MB", 1_500_000), ("12 B", 12), ("10_000 B", 10_000)]
)
def test_a_size_is_read_with_its_unit(text, n):
    assert units.parse_bytes(text) == n


@pytest.mark.parametrize(("value", "fraction"), [("90 %", 0.9), ("90%", 0.9), (0.9, 0.9), (1, 1.0), (0, 0.0)])
def test_a_share_is_read_as_percentage_or_fraction(value, fraction):
    assert units.parse_fraction(value) == pytest.approx(fraction)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("25 %", 0.25),
        (0.25, 0.25),
        (1, 1.0),
        ("500 k", 500_000),
        ("2.5 M", 2_500_000),
        (1000, 1000),
        ("1 k", 1000),
    ],
)
def test_a_share_or_a_count_is_read(value, number):
    assert units.parse_share_or_count(value) == number


@pytest.mark.parametrize("value", [50, 2, 1.5, "101 %", "0.5 k", "1.0005 k", "500", "3 M %", -1, True, None])
def test_what_may_be_a_share_or_a_count_is_refused(value):
    with pytest.raises(ValueError, match=r"%|share"):
        units.parse_share_or_count(value)


@pytest.mark.parametrize("value", [5, 5.0, None, "5", "5 parsecs", "ms", "", "5 ms ms", True])
def test_a_duration_without_a_known_unit_is_refused(value):
    with pytest.raises(ValueError, match=r"unit|number"):
        units.parse_milliseconds(value)


@pytest.mark.parametrize("value", ["-5 ms", "1e400 ms"])
def test_a_duration_below_zero_or_beyond_all_numbers_is_refused(value):
    with pytest.raises(ValueError, match=r"negative|too large"):
        units.parse_milliseconds(value)


@pytest.mark.parametrize("value", ["-5 KiB", "1e400 B"])
def test_a_size_below_zero_or_beyond_all_numbers_is_refused(value):
    with pytest.raises(ValueError, match=r"negative|too large"):
        units.parse_bytes(value)


@pytest.mark.parametrize("value", [90, -0.1, "101 %", "-3 %", "0.9", True, None])
def test_a_share_that_may_mean_two_things_is_refused(value):
    with pytest.raises(ValueError, match=r"%|share"):
        units.parse_fraction(value)


@given(st.floats(1e-6, 1e6))
def test_a_printed_duration_is_read_back_within_its_digits(ms):
    assert units.parse_milliseconds(units.format_ms(ms)) == pytest.approx(ms, rel=6e-3)


@given(st.integers(0, 10 * 1024**3))
def test_a_printed_size_is_read_back_within_its_digits(n):
    assert units.parse_bytes(units.format_bytes(n)) == pytest.approx(n, rel=6e-3, abs=0.5)


def test_numbers_print_as_people_write_them():
    assert units.format_bytes(98304) == "96 KiB"
    assert units.format_bytes(61 * 1024 + 100) == "61.1 KiB"
    assert units.format_ms(0.02141) == "0.0214 ms"
    assert units.format_percent(0.913) == "91.3 %"
    assert units.format_count(1_930_000) == "1.93 M"
    assert units.format_count(999_600) == "1 M"
    assert units.format_count(999) == "999"
    assert units.format_ms(999.7) == "1 s"
