"""Formats of numbers, durations, lists and JSON."""

import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest

from hpopt.analysis.trials import Outcome
from hpopt.formats import (
    format_count,
    format_duration,
    format_metric,
    format_number,
    format_percent,
    join_words,
    to_json,
)
from hpopt.search.space import Float


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_number(0.123456), "0.1235"),
        (format_number(1e-5), "1e-05"),
        (format_number(None), "-"),
        (format_number(value=True), "True"),
        (format_number(0.08312, digits=3), "0.0831"),
        (format_metric(3.81869), "3.8187"),
        (format_metric(0.0012345), "0.001234"),
        (format_metric(0.0), "0.0000"),
        (format_metric(-1.23456e300), "-1.235e+300"),
        (format_percent(0.004), "<1%"),
        (format_percent(0.0), "0%"),
        (format_percent(0.62), "62%"),
        (format_duration(42.4), "42 s"),
        (format_duration(185), "3 min 05 s"),
        (format_duration(7620), "2 h 07 min"),
        (format_count(1, "trial"), "1 trial"),
        (format_count(0, "trial"), "0 trials"),
        (join_words(["a"]), "a"),
        (join_words(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_values_are_formatted(shown: str, expected: str):
    assert shown == expected


def test_json_takes_numpy_numbers_times_enums_and_models():
    value = {"n": np.int64(3), "x": np.float32(0.5), "at": datetime(2026, 11, 27, tzinfo=UTC), "how": Outcome.LOST}
    expected = {"n": 3, "x": 0.5, "at": "2026-11-27T00:00:00+00:00", "how": "lost"}
    assert json.loads(to_json(value)) == expected
    assert json.loads(to_json(Float(low=0.1, high=1))) == {"low": 0.1, "high": 1}


def test_numbers_that_are_not_finite_become_null_or_what_postgres_casts():
    values = [math.nan, math.inf, -math.inf]
    assert to_json(values) == "[null, null, null]"
    assert to_json(values, keep_non_finite=True) == '["NaN", "Infinity", "-Infinity"]'
