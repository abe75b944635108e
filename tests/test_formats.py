"""Numbers, durations and lists are formatted for people, and values as JSON for programs."""

import json
import math
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from hpopt.analysis.trials import Outcome
from hpopt.formats import (
    format_amount,
    format_count,
    format_duration,
    format_metric,
    format_number,
    format_percent,
    join_words,
    printable,
    storable,
    to_json,
)
from hpopt.search.space import Float


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_number(0.123456), "0.1235"),
        (format_number(1e-5), "1e-05"),
        (format_number(None), "-"),
        (format_number(value=True), "True"),
        (format_number(0.0), "0"),
        (format_number(2.5e6), "2.5e+06"),
        (format_number(12345678), "12345678"),
        (format_number("muon"), "muon"),
        (format_number(math.nan), "nan"),
        (format_number(0.08312, digits=3), "0.0831"),
        (format_metric(3.81869), "3.8187"),
        (format_metric(0.0012345), "0.001234"),
        (format_metric(0.0), "0.0000"),
        (format_metric(-1.23456e300), "-1.235e+300"),
        (format_metric(-0.0012345), "-0.001234"),
        (format_metric(-12.5), "-12.5000"),
        (format_metric(math.inf), "inf"),
        (format_amount(0), "0"),
        (format_amount(960), "960"),
        (format_amount(92_160), "92.2k"),
        (format_amount(999_999), "1M"),
        (format_amount(10_800_000), "10.8M"),
        (format_amount(1.234e13, " "), "12.3 T"),
        (format_amount(3e22), "3e+04E"),
        (format_percent(0.004), "<1%"),
        (format_percent(0.0), "0%"),
        (format_percent(0.01), "1%"),
        (format_percent(0.62), "62%"),
        (format_percent(1.0), "100%"),
        (format_duration(0), "0 s"),
        (format_duration(42.4), "42 s"),
        (format_duration(59.6), "1 min 00 s"),
        (format_duration(185), "3 min 05 s"),
        (format_duration(3599.6), "1 h 00 min"),
        (format_duration(7620), "2 h 07 min"),
        (format_duration(100 * 3600), "100 h 00 min"),
        (format_count(1, "trial"), "1 trial"),
        (format_count(0, "trial"), "0 trials"),
        (join_words([]), ""),
        (join_words(["a"]), "a"),
        (join_words(["a", "b"]), "a and b"),
        (join_words(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_values_are_formatted(text: str, expected: str):
    assert text == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("val_loss", "val_loss"),
        ("", ""),
        ("\ufeffλ 😀\n\t\x01", "\ufeffλ 😀\n\t\x01"),
        ("a\0b\0", "ab"),
        ("a\ud800b", "a\ufffdb"),
        ("\udcff\udcfe", "\ufffd\ufffd"),
        ("\ud800", "\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("\ud83d\0\ude00", "😀"),
    ],
)
def test_a_storable_text_has_no_nul_and_no_lone_surrogate(text: str, expected: str):
    assert storable(text) == expected
    assert storable(text).encode().decode() == expected


def test_json_takes_numpy_numbers_times_enums_and_models():
    value = {"n": np.int64(3), "x": np.float32(0.5), "at": datetime(2026, 11, 27, tzinfo=UTC), "end": Outcome.LOST}
    expected = {"n": 3, "x": 0.5, "at": "2026-11-27T00:00:00+00:00", "end": "lost"}
    assert json.loads(to_json(value)) == expected
    assert json.loads(to_json(Float(low=0.1, high=1))) == {"low": 0.1, "high": 1}


def test_json_keeps_numbers_of_any_type_and_as_many_digits_as_a_program_can_read():
    values = [2**63, -(10**300), Decimal(3), Decimal("1E+3"), Decimal("0.25"), Decimal("1.00"), Fraction(1, 4), True]
    assert json.loads(to_json(values)) == [2**63, -(10**300), 3, 1000, 0.25, 1.0, 0.25, True]
    assert to_json([Decimal(2**53 + 1), Decimal("1.5")]) == "[9007199254740993, 1.5]"


def test_numbers_above_the_largest_double_are_not_finite():
    values = [10**400, -(10**400), Decimal("1E+999999"), Fraction(10**400), Decimal("NaN")]
    assert to_json(values) == "[null, null, null, null, null]"
    expected = ["Infinity", "-Infinity", "Infinity", "Infinity", "NaN"]
    assert json.loads(to_json(values, keep_non_finite=True)) == expected


def test_texts_of_others_are_storable_as_json():
    assert json.loads(to_json({"a\0\ud800": ["b\0", b"\x00\xff", memoryview(b"\x01")]})) == {
        "a\ufffd": ["b", "\\x00ff", "\\x01"]
    }


def test_numbers_that_are_not_finite_become_null_or_the_strings_that_postgres_casts():
    values = [math.nan, math.inf, -math.inf]
    assert to_json(values) == "[null, null, null]"
    assert to_json(values, keep_non_finite=True) == '["NaN", "Infinity", "-Infinity"]'


def test_numbers_that_are_not_finite_are_found_at_any_depth():
    value = {"curve": [(1, math.nan)], "best": np.float64(math.inf)}
    assert json.loads(to_json(value)) == {"curve": [[1, None]], "best": None}
    assert json.loads(to_json(value, keep_non_finite=True)) == {"curve": [[1, "NaN"]], "best": "Infinity"}


@dataclass(frozen=True)
class Point:
    """A record with a field that JSON has no type for."""

    x: float
    path: Path | None = None


def test_json_takes_dataclasses_and_writes_what_it_has_no_type_for_as_a_string():
    value = {1: Point(x=0.5, path=Path("/data")), "is_last": True, "type": Point, "missing": None}
    assert json.loads(to_json(value)) == {
        "1": {"x": 0.5, "path": "/data"},
        "is_last": True,
        "type": str(Point),
        "missing": None,
    }


def test_json_can_be_indented():
    assert to_json({"n": [1]}, indent=2) == '{\n  "n": [\n    1\n  ]\n}'


def test_what_a_terminal_obeys_is_escaped_and_nothing_else():
    """Controls, half surrogates, separators of lines, and characters that reverse the order of others."""
    obeyed = {
        character
        for character in map(chr, range(0x10000))
        if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
        or unicodedata.bidirectional(character) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
        or character in "\u061c\u200e\u200f"
    }
    changed = {character for character in map(chr, range(0x10000)) if printable(character) != character}
    assert changed == obeyed - {"\n", "\t"}


def test_control_characters_are_shown_as_escapes():
    assert printable("a\x1b[31m\u202e\ud800 b\nc\td \u00e9 \U0001f600") == (
        "a\\x1b[31m\\u202e\\ud800 b\nc\td \u00e9 \U0001f600"
    )
