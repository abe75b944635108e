"""Convert what a training function yields or returns into an Evaluation of Python's numbers."""

import math
import operator
from collections.abc import Mapping
from typing import Any

from hpopt.formats import one_line, storable
from hpopt.study.file import POSTGRES_MAX_INT
from hpopt.training.run import Evaluation

_MAX_BIGINT = 2**63 - 1
# Characters of a value in a message.
_MAX_SHOWN = 80


class UnusableError(ValueError):
    """What a training function yielded or returned is not an evaluation of the study's metric."""


def convert_yielded(yielded: object, metric: str) -> tuple[Evaluation, dict[str, str]]:
    """Return an evaluation, and a warning for each metric that was left out because it is not a number, by its name.

    Raises UnusableError if it is no Evaluation, if a count is not a whole number in its range, or if `metric`, the one
    that the study optimizes, is missing or no number.
    """
    if not isinstance(yielded, Evaluation):
        raise UnusableError(f"the objective yielded {show(yielded)}, which is not an Evaluation")
    if not isinstance(yielded.metrics, Mapping):
        raise UnusableError(f"metrics is {show(yielded.metrics)}, which is not a mapping")
    metrics, warnings = _convert_metrics(yielded.metrics, metric)
    evaluation = Evaluation(
        step=_to_count("step", yielded.step, 0, POSTGRES_MAX_INT),
        n_steps=_to_count("n_steps", yielded.n_steps, 1, _MAX_BIGINT),
        tokens=_to_count("tokens", yielded.tokens, 0, _MAX_BIGINT),
        seconds=_to_seconds(yielded.seconds),
        metrics=metrics,
    )
    return evaluation, warnings


def convert_returned(returned: object, metric: str, seconds: float) -> Evaluation:
    """Return the evaluation of a function that returns its value, or all metrics, instead of yielding Evaluations.

    Raises UnusableError if it returned something else. `seconds` is the time that it took.
    """
    metrics: Mapping[str, Any] = returned if isinstance(returned, Mapping) else {metric: returned}
    if _to_float(metrics.get(metric)) is None:
        expected = f"expected Evaluations, or the value of '{metric}'"
        raise UnusableError(f"the objective returned {show(returned)}: {expected}")
    return Evaluation(step=1, n_steps=1, tokens=0, seconds=seconds, metrics=metrics)


def show(value: object) -> str:
    """Return the start of a value's representation, also of a value whose __repr__ fails."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - it is code of the user's.
        text = f"a value of type {type(value).__name__}"
    text = storable(one_line(text))
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _convert_metrics(reported: Mapping[Any, object], metric: str) -> tuple[dict[str, float], dict[str, str]]:
    metrics: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for key, value in reported.items():
        name, number = storable(str(key)), _to_float(value)
        if number is None:
            left_out[name] = f"metric '{name}' is {show(value)}, which is not a number: left out"
        else:
            metrics[name] = number
    if metric in left_out:
        raise UnusableError(f"'{metric}' is {show(reported[metric])}, which is not a number")
    if metric not in metrics:
        raise UnusableError(
            f"the objective reports no '{metric}'; it reports {', '.join(sorted(metrics)) or 'nothing'}"
        )
    return metrics, left_out


def _to_float(value: object) -> float | None:
    """Return a number, a NumPy scalar or a tensor with one element as a float; None for anything else."""
    if isinstance(value, str | bytes | bytearray):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except (TypeError, ValueError):
        return None
    except RuntimeError as error:
        # A failed GPU raises it too, where a tensor is read.
        if "cannot be converted to Scalar" not in str(error):
            raise
        return None


def _to_count(name: str, value: object, low: int, high: int) -> int:
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = _to_float(value)
        if number is None or not number.is_integer():
            raise UnusableError(f"{name} is {show(value)}, which is not a whole number") from None
        count = int(number)
    if not low <= count <= high:
        raise UnusableError(f"{name} is {show(value)}, which is not within {low} and {high}")
    return count


def _to_seconds(value: object) -> float:
    seconds = _to_float(value)
    if seconds is None or not 0 <= seconds < math.inf:
        raise UnusableError(f"seconds is {show(value)}, which is not a duration in seconds")
    return seconds
