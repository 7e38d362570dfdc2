"""Durations and times: the accepted spellings, and rejection of all others."""

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
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
    "|P|PT|T|P1|1|1x|h|1hh| 1h|1h |1h\n|30m1h|1s1m|1h1h|1,5h|-1h|-5m|.5h|1.h|1.5.5h|"
    "+1h|1h-30m|P1H|PT1D|P1Y|P1M|p1d|pt1h|PT1H30|PT30M1H|P-1D|-P1D|PT1.5S|P1DT|P1DT1H1D|"
    "PT1HT1M|12345678901s|1h30m PT1H|1e3s|0x1s|１h|1ｈ|١h|1½h|²h|∞s|1h30|PT1H 30M|PT 1H|"
    "500ms|in 5 minutes|5 minutes ago|01:30:00|0.3s|1.0s|1.25m|1.125h|1.125d|1.125w|"
    "1h, 30m|1 hour and 30 minutes|1h\t30m|1\u00a0h|5 minuts|5 minutees|2 hous|1 month|1mo|1y|"
    "1M|5 M|1D1M|1W 1D 1M|1 day 5M|5 M\n"
)

INVALID_TIMES = (
    "|2027|2027-01-31|09:00:00Z|2027-01-31T9:00Z|2027-1-31T09:00:00Z|"
    "2027-01-31T09:00:00+1|2027-01-31T09:00:00+01:|2027-01-31T09:00:00 Z|2027-01-31T09Z|"
    "2027-01-31T09:00.5Z|2027-01-31T09:00:00+010|2027-01-31T09:00:00.Z|2027-01-31T09:00:00,5Z|20270131T090000Z|5|1800000000|now|"
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
        ("1w", 604_800),
        ("P1W", 604_800),
        ("2 days", 172_800),
        ("5 minutes", 300),
        ("5min", 300),
        ("5 mins", 300),
        ("1 Minute", 60),
        ("2hrs", 7200),
        ("1hour", 3600),
        ("45 SECONDS", 45),
        ("1h 30m", 5400),
        ("1 hour 30 minutes", 5400),
        ("1H30M", 5400),
        ("1M30S", 90),
        ("1.5h", 5400),
        ("0.29 h", 1044),
        ("1.25d", 108_000),
        ("0.01w", 6048),
        ("1.1m", 66),
        ("PT1.5H", 5400),
    ],
)
def test_parses_durations(text: str, seconds: int) -> None:
    """Units are optional, in any case, and by name; each number may be large."""
    assert durations.parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    INVALID_DURATIONS.split("|"),
)
def test_rejects_other_durations(text: str) -> None:
    """Fractions of a second, signs, months, repeats, other orders and digits are rejected."""
    with pytest.raises(ValueError, match=r"\.$"):
        durations.parse_duration(text)


def test_rejects_a_duration_without_a_unit() -> None:
    """The error shows the number with a unit."""
    with pytest.raises(ValueError, match='write 90 or "90s"'):
        durations.parse_duration("90")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1M", "1m"),
        ("5 M", "5 m"),
        ("1D1M", "1D1m"),
        ("1 day 5M", "1 day 5m"),
        ("P1M", "PT1M"),
        ("P1DT1M", None),
        ("1MM", None),
        ("1M\n", None),
    ],
)
def test_an_ambiguous_m_suggests_minutes(text: str, meant: str | None) -> None:
    """The error for months shows the same number of minutes, as a valid duration."""
    try:
        durations.parse_duration(text)
    except ValueError as error:
        assert (f'write "{meant}"' in str(error)) is (meant is not None)  # noqa: PT017  # if any
    else:
        assert meant is None
    assert meant is None or durations.parse_duration(meant)


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
            lambda text: re.sub("([0-9])", r"\1,5", text, count=1),
            lambda text: re.sub("([0-9])", r"\1.123", text, count=1),
            lambda text: f" {text}",
            lambda text: f"{text}\n",
            lambda text: re.sub("([0-9]+)", "10000000000\\1", text, count=1),
        ]
    ),
)
def test_rejects_corrupted_durations(
    spell: Spell, parts: tuple[int, ...], corrupt: Callable[[str], str]
) -> None:
    """Other digits, repeats, signs, thousandths and too many digits are rejected."""
    with pytest.raises(ValueError, match=r"\.$"):
        durations.parse_duration(corrupt(spell(parts)))


NAMES = {
    "w wk wks week weeks": (604_800, 2),
    "d day days": (86_400, 2),
    "h hr hrs hour hours": (3600, 2),
    "m min mins minute minutes": (60, 1),
    "s sec secs second seconds": (1, 0),
}
"""Names of units, with their seconds and the decimals that numbers of them may have."""


def seconds_in(text: str) -> Fraction | None:
    """Return the seconds of a duration in words by a second implementation, or None."""
    total, last, hours = Fraction(0), 10**6, False
    for piece in re.split("(?<=[A-Za-z]) *(?=[0-9])", text):
        number = re.split("[^0-9.]", piece)[0]
        word = piece[len(number) :].lstrip(" ")
        unit = next((it for names, it in NAMES.items() if word.lower() in names.split()), None)
        whole, point, decimals = number.partition(".")
        if unit is None or not 1 <= len(whole) <= 10 or unit[0] >= last:
            return None
        if bool(point) != bool(decimals) or len(decimals) > unit[1] or "." in decimals:
            return None
        total, last, hours = total + Fraction(number) * unit[0], unit[0], hours or unit[0] == 3600
    return None if text.endswith("M") and not hours and last == 60 else total


@given(
    st.text("0123456789wdhms１٣-+. M", max_size=12)
    | st.lists(
        st.tuples(
            st.decimals(0, 99, places=1) | st.integers(0, 10**10),
            st.sampled_from(["", " ", "  "]),
            st.sampled_from(" ".join(NAMES).split()).flatmap(
                lambda name: st.sampled_from([name, name.upper(), name.title()])
            ),
            st.sampled_from(["", " "]),
        ),
        max_size=3,
    ).map(lambda parts: "".join(f"{a}{b}{c}{d}" for a, b, c, d in parts).rstrip())
)
def test_parses_durations_only(text: str) -> None:
    """A text is accepted, with the same seconds, if and only if a second implementation does."""
    try:
        found = durations.parse_duration(text)
    except OverflowError:
        assert seconds_in(text) is not None
    except ValueError:
        assert seconds_in(text) is None
    else:
        assert found == timedelta(seconds=int(seconds_in(text) or 0))


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
        ("2027-01-31T09:00Z", datetime(2027, 1, 31, 9, tzinfo=UTC)),
        ("2027-01-31T09:00+01:00", datetime(2027, 1, 31, 8, tzinfo=UTC)),
        ("2027-01-31T09:00:00+0130", datetime(2027, 1, 31, 7, 30, tzinfo=UTC)),
        ("2027-01-31T09:00:00-05", datetime(2027, 1, 31, 14, tzinfo=UTC)),
    ],
)
def test_parses_times(text: str, moment: datetime) -> None:
    """RFC 3339 with any offset and fraction, or shorter; parts of microseconds are rounded up."""
    assert durations.parse_moment(text) == moment
    assert durations.parse_moment(text).tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("2027-01-31T09:00:00", "zone is missing"),
        ("2027-01-31T09:00:00.5", "zone is missing"),
        ("2027-01-31T09:00", "zone is missing"),
        ("2027-01-31", '"2027-01-31T09:00:00Z"'),
        ("2027-02-31", '"2027-01-31T09:00:00[+]01:00"'),
        ("1800000000", '"2027-01-15T08:00:00Z"'),
        ("1800000000000", '"2027-01-15T08:00:00Z"'),
        ("1800000000.25", '"2027-01-15T08:00:00.250000Z"'),
        *((text, "date and time") for text in INVALID_TIMES.split("|")),
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
    """The error tells a missing part, seconds since 1970 and an impossible date apart."""
    with pytest.raises(ValueError, match=fragment):
        durations.parse_moment(text)


@pytest.mark.parametrize("number", [-1, 0, 60, 10**8 - 1, 10**20, 1e300, float("inf")])
def test_other_numbers_are_no_times(number: float) -> None:
    """A number is a time since 1970 only if it can be seconds … nanoseconds of this age."""
    assert durations.moment_since_1970(number) is None


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
