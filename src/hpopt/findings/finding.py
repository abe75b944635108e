"""Owns what a warning is: what was found, in plain words, with the numbers behind it and what to do about it.

Leaves finding them to trials.py and parameters.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hpopt.hyperparameters import Scalar
from hpopt.search.space import Categorical, Range

Severity = Literal["error", "warning", "note"]
Code = Literal[
    "leak",
    "treatment-not-applied",
    "seed-not-applied",
    "edge",
    "budget-dependent",
    "pruned-too-early",
    "tie",
    "too-few-trials",
    "diverging",
    "interaction",
    "importance-biased",
]

_MOST_LISTED = 4


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A warning: an error makes the answer wrong, a warning makes it doubtful, a note is good to know.

    `subject` is the parameter that it is about (two, with a comma, for a pair), or None; code and subject occur once.
    `evidence` are the numbers behind the sentence, as JSON takes them.
    """

    code: Code
    severity: Severity
    message: str
    evidence: Mapping[str, Any]
    remedy: str
    subject: str | None = None


def as_toml(range_: Range | None) -> str:
    """Write a range as the study file has it."""
    if range_ is None:
        return ""
    if isinstance(range_, Categorical):
        return f"{{ choices = [{', '.join(str(choice) for choice in range_.choices)}] }}"
    parts = [f"low = {range_.low!r}", f"high = {range_.high!r}"]
    parts += ["log = true"] * range_.log + ['type = "int"'] * (range_.type == "int")
    parts += [f"step = {range_.step!r}"] * (range_.step not in {None, 1})
    return f"{{ {', '.join(parts)} }}"


def show(value: Scalar | None) -> str:
    """Write a value with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def list_words(values: Sequence[Scalar]) -> str:
    """Write values as a list in a sentence, of many the first few."""
    words = [show(value) for value in values]
    if len(words) > _MOST_LISTED + 1:
        words = [*words[:_MOST_LISTED], f"{len(words) - _MOST_LISTED} others"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
