"""Format numbers, durations and lists for people, and values as JSON for programs."""

import json
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any

from pydantic import BaseModel

# A metric below or above these is shown with significant digits instead of decimals.
_SMALL, _LARGE = 0.01, 1e6
_PERCENT = 0.01
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
# Of a longer list the first ones are named.
_MAX_LISTED = 4
_LISTED_DIGITS = 3
# Characters that a terminal obeys instead of showing them, that reverse the order of others, or that it cannot show.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def format_number(value: bool | float | str | None, digits: int = 4) -> str:  # noqa: FBT001 - true is a value of a choice.
    r"""Format a value with `digits` significant digits and no trailing zeros; None is `-`, and a line feed \n."""
    if isinstance(value, bool) or not isinstance(value, float):
        return "-" if value is None else str(value).replace("\n", r"\n")
    return f"{value:.{digits}g}"


def format_metric(value: float) -> str:
    """Format a metric with four decimals, or with four significant digits if it is below 0.01 or from 1e6 on."""
    return f"{value:.4f}" if _SMALL <= abs(value) < _LARGE or value == 0 else f"{value:.4g}"


def format_amount(value: float, separator: str = "") -> str:
    """Format an amount with three significant digits and the prefix of a unit: 960, 92.2k, 10.8M."""
    digits = f"{value:.2e}"
    power = min(max(0, int(digits.partition("e")[2]) // 3), len(_PREFIXES) - 1)
    return f"{float(digits) / 1000**power:.3g}{separator}{_PREFIXES[power]}"


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


def list_values(values: Sequence[float | str]) -> str:
    """Join values as in a sentence; of more than five, the first four and the number of others."""
    words = [format_number(value, digits=_LISTED_DIGITS) for value in values]
    if len(words) > _MAX_LISTED + 1:
        words = [*words[:_MAX_LISTED], f"{len(words) - _MAX_LISTED} others"]
    return join_words(words)


def printable(text: str) -> str:
    r"""Return a text with control characters as escapes, such as \x1b, except for line feeds and tabs.

    Names, reasons and errors can be anybody's, and a terminal obeys what is in them.
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Return a text on one line, its lines joined by spaces."""
    lines = text.splitlines()
    return text if lines == [text] else " ".join(line.strip() for line in lines if line.strip())


def storable(text: str) -> str:
    """Return a text that PostgreSQL and UTF-8 can store: without NUL, and with U+FFFD for each lone surrogate."""
    return text.replace("\0", "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def to_json(value: Any, *, indent: int | None = None, keep_non_finite: bool = False) -> str:  # noqa: ANN401 - any value.
    """Return a value as JSON that PostgreSQL can store.

    Dataclasses and models become objects, times ISO 8601, bytes hexadecimal as in psql, and what JSON has no type for
    becomes a string. Numbers that are not finite, or above the largest double, become null, or with `keep_non_finite`
    the strings NaN, Infinity and -Infinity, which PostgreSQL casts to double precision.
    """
    return json.dumps(_jsonable(value, keep_non_finite=keep_non_finite), indent=indent, allow_nan=False)


def _jsonable(value: Any, *, keep_non_finite: bool) -> Any:  # noqa: ANN401 - any value.
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {storable(str(key)): _jsonable(inner, keep_non_finite=keep_non_finite) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner, keep_non_finite=keep_non_finite) for inner in value]
    if isinstance(value, numbers.Real | Decimal) and not isinstance(value, bool | Enum):
        return _number(value, keep_non_finite=keep_non_finite)
    return _scalar(value)


def _number(value: Any, *, keep_non_finite: bool) -> float | str | None:  # noqa: ANN401 - any number.
    try:
        real = float(value)
    except OverflowError:
        real = math.inf if value > 0 else -math.inf
    if not math.isfinite(real):
        return json.dumps(real) if keep_non_finite else None
    is_whole = isinstance(value, numbers.Integral) or (isinstance(value, Decimal) and "." not in format(value, "f"))
    return int(value) if is_whole else real


def _scalar(value: object) -> float | str | None:
    if isinstance(value, Enum):
        return _scalar(value.value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | memoryview):
        return f"\\x{value.hex()}"
    return value.isoformat() if isinstance(value, datetime) else storable(str(value))
