"""Durations and times: the accepted spellings, and rejection of all others."""

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.core import durations

T = TypeVar("T")
Spell = Callable[[tuple[int, ...]], str]

NUMBER = st.integers(0, 9_999_999)
PARTS = st.tuples(NUMBER, NUMBER, NUMBER, NUMBER).filter(any)
FULL_WIDTH = str.maketrans("0123456789", "０１２３４５６７８９")
ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")


def short(parts: tuple[int, ...]) -> str:
    return "".join(f"{part}{unit}" for part, unit in zip(parts, "dhms", strict=True) if part)


def iso(parts: tuple[int, ...]) -> str:
    days, *rest = (f"{part}{unit}" for part, unit in zip(parts, "DHMS", strict=True))
    times = "".join(part for part in rest if part[0] != "0")
    return "P" + (days if parts[0] else "") + (f"T{times}" if times else "")


INVALID_DURATIONS = (
    "|P|PT|T|P1|1|1x|1H|1D|h|1hh|1h 30m| 1h|1h |1h\n|30m1h|1s1m|1h1h|1.5h|1,5h|-1h|"
    "+1h|1h-30m|P1H|PT1D|P1Y|P1M|P1W|1w|p1d|pt1h|PT1H30|PT30M1H|P-1D|-P1D|PT1.5S|P1DT|"
    "PT1HT1M|12345678901s|1h30m PT1H|1e3s|0x1s|１h|1ｈ|١h|1½h|²h|∞s|1h30"
)

INVALID_TIMES = (
    "|2027|2027-01-31|09:00:00Z|2027-01-31T09:00Z|2027-1-31T09:00:00Z|"
    "2027-01-31T09:00:00+0100|2027-01-31T09:00:00+01|2027-01-31T09:00:00 Z|"
    "2027-01-31T09:00:00.Z|2027-01-31T09:00:00,5Z|20270131T090000Z|1800000000|now|"
    " 2027-01-31T09:00:00Z|2027-01-31T09:00:00Z\n|-2027-01-31T09:00:00Z|"
    "2027-W05-1T09:00:00Z|２027-01-31T09:00:00Z|2027-01-31T09:00:00.１Z|"
    "2027-01-31T09:00:00UTC|2027-01-31T09:00:00Europe/Berlin|"
    "2027-01-31T09:00:00+01:00:00|2027-01-31T24:00:00Z|2027-01-31T09:60:00Z|"
    "2027-01-31T09:00:00+24:00|2027-01-31T09:00:00+01:60|"
    "2027-01-31T09:00:00+01:00[Europe/Berlin]"
)


class Sentence(Exception):
    """A ValueError whose message is a sentence."""


def sentences(read: Callable[[str], T], text: str) -> T:
    """Return the parsed value, or raise Sentence; let any other error fail the test."""
    try:
        return read(text)
    except ValueError as error:
        if str(error).endswith("."):
            raise Sentence from None
        raise


SPELLINGS = [short, iso]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1h30m", 5400),
        ("1d2h30m45s", 95445),
        ("PT1H30M", 5400),
        ("P1DT2H30M45S", 95445),
        ("P1D", 86400),
        ("90m", 5400),
        ("0s", 0),
        ("PT0S", 0),
        ("007s", 7),
        ("1d1s", 86401),
        ("9999999999s", 9_999_999_999),
    ],
)
def test_parses_durations(text: str, seconds: int) -> None:
    """Days, hours, minutes and seconds are optional, and each may be large."""
    assert durations.parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    INVALID_DURATIONS.split("|"),
)
def test_rejects_other_durations(text: str) -> None:
    """Signs, fractions, spaces, repeats, other orders, units and digits are rejected."""
    with pytest.raises(ValueError, match=r"\.$"):
        durations.parse_duration(text)


def test_rejects_a_duration_without_a_unit() -> None:
    """The error shows the number with a unit."""
    with pytest.raises(ValueError, match='write 90 or "90s"'):
        durations.parse_duration("90")


@pytest.mark.parametrize("spell", SPELLINGS)
@given(parts=PARTS)
def test_parses_every_duration(spell: Spell, parts: tuple[int, ...]) -> None:
    """Any combination of units is parsed in both spellings."""
    days, hours, minutes, seconds = parts
    expected = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    assert durations.parse_duration(spell(parts)) == expected


@pytest.mark.parametrize("spell", SPELLINGS)
@given(
    parts=PARTS,
    corrupt=st.sampled_from(
        [
            lambda text: text.translate(FULL_WIDTH),
            lambda text: text.translate(ARABIC),
            lambda text: text + text,
            lambda text: "-" + text,
            lambda text: "+" + text,
            lambda text: re.sub("([0-9])", r"-\1", text, count=1),
            lambda text: re.sub("([0-9])", r"\1.5", text, count=1),
            lambda text: text.swapcase(),
            lambda text: f" {text}",
            lambda text: f"{text}\n",
            lambda text: re.sub("([0-9]+)", "10000000000\\1", text, count=1),
        ]
    ),
)
def test_rejects_corrupted_durations(
    spell: Spell, parts: tuple[int, ...], corrupt: Callable[[str], str]
) -> None:
    """Other digits, repeats, signs, fractions, case, spaces and too many digits are rejected."""
    with pytest.raises(ValueError, match=r"\.$"):
        durations.parse_duration(corrupt(spell(parts)))


def is_short_duration(text: str) -> bool:
    """Say whether this is a duration in the short form, by a second implementation."""
    pieces = re.findall(r"[^dhms]*[dhms]|[^dhms]+$", text)
    units = [piece[-1] for piece in pieces]
    numbers = [piece[:-1] for piece in pieces]
    return (
        bool(pieces)
        and all(n.isascii() and n.isdigit() and len(n) <= 10 for n in numbers)
        and ["dhms".find(unit) for unit in units] == sorted({"dhms".find(unit) for unit in units})
        and -1 not in ["dhms".find(unit) for unit in units]
    )


@given(st.text("0123456789dhms１٣-+. ", max_size=12))
def test_parses_durations_only(text: str) -> None:
    """A text is accepted if and only if a second implementation accepts it."""
    try:
        durations.parse_duration(text)
    except (ValueError, OverflowError):
        assert not is_short_duration(text)
    else:
        assert is_short_duration(text)


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_a_sentence(text: str) -> None:
    """No text raises another exception."""
    with suppress(OverflowError, Sentence):
        sentences(durations.parse_duration, text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-31T09:00:00Z", datetime(2027, 1, 31, 9, tzinfo=UTC)),
        ("2027-01-31T09:00:00+01:00", datetime(2027, 1, 31, 8, tzinfo=UTC)),
        ("2027-01-31t09:00:00z", datetime(2027, 1, 31, 9, tzinfo=UTC)),
        ("2027-01-31 09:00:00-00:00", datetime(2027, 1, 31, 9, tzinfo=UTC)),
        ("2027-01-31T09:00:00.5Z", datetime(2027, 1, 31, 9, 0, 0, 500_000, tzinfo=UTC)),
        ("2027-01-31T09:00:00.123456Z", datetime(2027, 1, 31, 9, 0, 0, 123_456, tzinfo=UTC)),
        ("2027-01-31T09:00:00.123456001Z", datetime(2027, 1, 31, 9, 0, 0, 123_457, tzinfo=UTC)),
        ("2027-01-31T09:00:00.9999999Z", datetime(2027, 1, 31, 9, 0, 1, tzinfo=UTC)),
        ("2028-02-29T23:59:59-23:59", datetime(2028, 3, 1, 23, 58, 59, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_parses_times(text: str, moment: datetime) -> None:
    """RFC 3339 with any offset and fraction; fractions of a microsecond are rounded up."""
    assert durations.parse_moment(text) == moment
    assert durations.parse_moment(text).tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("2027-01-31T09:00:00", "zone is missing"),
        ("2027-01-31T09:00:00.5", "zone is missing"),
        *((text, "date and time like") for text in INVALID_TIMES.split("|")),
        *(
            (text, "no such date and time")
            for text in (
                "2027-02-29T09:00:00Z",
                "2027-13-01T09:00:00Z",
                "2027-00-01T09:00:00Z",
                "2027-01-31T09:00:60Z",
                "0000-01-01T00:00:00Z",
                "0001-01-01T00:00:00+00:01",
                "9999-12-31T23:59:59-00:01",
                "9999-12-31T23:59:59.9999999Z",
            )
        ),
    ],
)
def test_rejects_other_times(text: str, fragment: str) -> None:
    """The error distinguishes a missing zone, another format and an impossible date."""
    with pytest.raises(ValueError, match=fragment):
        durations.parse_moment(text)


ZONES = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(
    st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=ZONES),  # noqa: DTZ001
    st.sampled_from("Tt "),
)
def test_parses_every_time(moment: datetime, between: str) -> None:
    """An aware datetime in Python's ISO format comes back unchanged."""
    assert durations.parse_moment(moment.isoformat(sep=between)) == moment


@given(st.integers(0, 10**9 - 1))
def test_rounds_fractions_up(nanos: int) -> None:
    """A time in nanoseconds becomes the first microsecond that is not before it."""
    found = durations.parse_moment(f"2027-01-31T09:00:00.{nanos:09}Z")
    micros = (found - datetime(2027, 1, 31, 9, tzinfo=UTC)) // timedelta(microseconds=1)
    assert 0 <= micros * 1000 - nanos < 1000


@given(st.text(max_size=40) | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T.{0,12}Z"))
def test_any_text_is_a_time_or_a_sentence(text: str) -> None:
    """No text raises another exception."""
    with suppress(Sentence):
        assert sentences(durations.parse_moment, text).tzinfo is UTC
