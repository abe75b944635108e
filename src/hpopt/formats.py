"""Format numbers, durations and lists for people, and values as JSON for programs."""

import json
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from pydantic import BaseModel

# A metric below or above these is shown with significant digits instead of decimals.
_SMALL, _LARGE = 0.01, 1e6
_PERCENT = 0.01
# Characters that a terminal obeys instead of showing them, that reverse the order of others, or that it cannot show.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def format_number(value: bool | float | str | None, digits: int = 4) -> str:  # noqa: FBT001 - true is a value of a choice.
    """Format a value with `digits` significant digits and no trailing zeros; None is `-`."""
    if isinstance(value, bool) or not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.{digits}g}"


def format_metric(value: float) -> str:
    """Format a metric with four decimals, or with four significant digits if it is below 0.01 or from 1e6 on."""
    return f"{value:.4f}" if _SMALL <= abs(value) < _LARGE or value == 0 else f"{value:.4g}"


def format_percent(share: float) -> str:
    """Format a share from 0 to 1 in whole percents; `<1%` for what would be rounded to 0."""
    return "<1%" if 0 < share < _PERCENT else f"{share:.0%}"


def format_duration(seconds: float) -> str:
    """Format a duration as 42 s, 3 min 05 s or 2 h 07 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def format_count(n: int, noun: str) -> str:
    """Format a number of things: 1 trial, 3 trials."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def join_words(words: Sequence[str]) -> str:
    """Join words as in a sentence: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def printable(text: str) -> str:
    r"""Return a text with control characters as escapes, such as \x1b, except for line feeds and tabs.

    Names, reasons and errors can be anybody's, and a terminal obeys what is in them.
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def to_json(value: Any, *, indent: int | None = None, keep_non_finite: bool = False) -> str:  # noqa: ANN401 - any value.
    """Return a value as JSON.

    Dataclasses and models become objects, times ISO 8601, and what JSON has no type for becomes a string. Numbers that
    are not finite become null, or with `keep_non_finite` the strings NaN, Infinity and -Infinity, which PostgreSQL
    casts to double precision.
    """
    return json.dumps(_jsonable(value, keep_non_finite=keep_non_finite), indent=indent, allow_nan=False)


def _jsonable(value: Any, *, keep_non_finite: bool) -> Any:  # noqa: ANN401 - any value.
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(inner, keep_non_finite=keep_non_finite) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner, keep_non_finite=keep_non_finite) for inner in value]
    if isinstance(value, numbers.Real) and not isinstance(value, bool | numbers.Integral):
        return _real(float(value), keep_non_finite=keep_non_finite)
    return _scalar(value)


def _real(value: float, *, keep_non_finite: bool) -> float | str | None:
    if math.isfinite(value):
        return value
    return json.dumps(value) if keep_non_finite else None


def _scalar(value: object) -> int | str | None:
    if isinstance(value, Enum):
        return _scalar(value.value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return value.isoformat() if isinstance(value, datetime) else str(value)
