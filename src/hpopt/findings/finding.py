"""A finding: a warning about a study, with its evidence and a remedy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hpopt.search.conditions import condition_to_toml
from hpopt.search.space import Categorical, Range

Severity = Literal["error", "warning", "note"]
Code = Literal[
    "leak",
    "treatment-not-applied",
    "seed-not-applied",
    "collapsed",
    "edge",
    "budget-dependent",
    "pruned-too-early",
    "tie",
    "too-few-trials",
    "diverging",
    "interaction",
    "importance-biased",
]

# Most severe first.
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
# Significant digits of numbers in messages.
DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A warning about a study.

    An error makes the result wrong, a warning makes it doubtful, a note is worth knowing. `subject` is the name of the
    parameter concerned (two, joined by a comma, for a pair), or None; a pair of code and subject is unique. `evidence`
    holds the numbers behind the message, as JSON values.
    """

    code: Code
    severity: Severity
    message: str
    evidence: Mapping[str, Any]
    remedy: str
    subject: str | None = None


def to_toml(range_: Range | None) -> str:
    """Return a range as an inline table of a study file."""
    if range_ is None:
        return ""
    when = [condition_to_toml(range_.when)] if range_.when else []
    if isinstance(range_, Categorical):
        choices = f"choices = [{', '.join(str(choice) for choice in range_.choices)}]"
        return f"{{ {', '.join([choices, *when])} }}"
    parts = [f"low = {range_.low!r}", f"high = {range_.high!r}"]
    parts += ["log = true"] * range_.log + ['type = "int"'] * (range_.type == "int")
    parts += [f"step = {range_.step!r}"] * (range_.step not in {None, 1})
    return f"{{ {', '.join([*parts, *when])} }}"
