"""Define the ranges of a search space: Float, Int and Categorical."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from hpopt.hyperparameters import TYPE_NAMES, Scalar, not_one_of

# How close to a multiple of the step a value must be, in steps; that of Optuna's FloatDistribution.
GRID_TOLERANCE = 1e-8

# More values of one parameter are a search, and a list of them would fill the memory.
MAX_POINTS = 10_000

# Optuna stores every parameter as a double, which is exact for integers up to this.
LARGEST_EXACT_INT = 2**53

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


def is_one_of(value: object, values: Iterable[Scalar]) -> bool:
    """Return whether a value is one of others; true is not 1."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


def _check_scalar(value: object) -> None:
    if type(value) not in (bool, int, float, str) or (type(value) is float and not math.isfinite(value)):
        raise ValueError(f"{value!r} is not a string, a finite number, true or false{_as_string(value)}")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{value!r} has a NUL, which PostgreSQL does not store")


def _to_values(value: object) -> tuple[object, ...]:
    """Return the values that a condition gives for a parameter: one, or a list."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not values:
        raise ValueError("no value; list those with which the parameter is active")
    for one in values:
        _check_scalar(one)
    return values


Values = Annotated[
    tuple[Scalar, ...],
    Field(strict=False),
    BeforeValidator(_to_values, json_schema_input_type=Scalar | Annotated[list[Scalar], Field(min_length=1)]),
]
When = Annotated[
    dict[str, Values],
    Field(
        description="With which values of other parameters this one is active, each a value or a list; all must hold."
    ),
]

Num = Annotated[
    int | None,
    Field(
        ge=2,
        le=MAX_POINTS,
        description="Points of a fixed design from low to high, equidistant; with log, in the logarithm.",
    ),
]


class Float(BaseModel):
    """Real numbers from low to high, both included."""

    model_config = STRICT

    type: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False
    """Sample evenly in the logarithm: as many values from 0.001 to 0.01 as from 0.01 to 0.1."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Take only low, low + step, low + 2 step and so on."""
    num: Num = None
    when: When = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_bounds(self.low, self.high, self.step, above=0 if self.log else None)
        if self.num is not None and self.step is not None:
            raise ValueError("num and step exclude each other; remove one")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other; remove one")
        return self

    def contains(self, value: object) -> bool:
        """Return whether the value is in the range."""
        if type(value) not in (int, float) or not self.low <= value <= self.high:  # type: ignore[operator]
            return False
        if self.step is None:
            return True
        n_steps = (value - self.low) / self.step  # type: ignore[operator]
        return abs(n_steps - round(n_steps)) < GRID_TOLERANCE

    def values(self) -> Iterator[float]:
        """Yield all values of a range with a step, ascending. Raises ValueError without a step.

        The arithmetic is decimal, as for the high of Optuna's FloatDistribution: 0.1 + 2 steps of 0.1 is 0.3.
        """
        return (self._value_at(i) for i in range(self._n_steps() + 1))

    def points(self) -> tuple[float, ...]:
        """Return the values in a fixed design, ascending. Raises ValueError without num and step."""
        return tuple(self.values()) if self.num is None else _spaced(self.low, self.high, self.num, log=self.log)

    def extremes(self) -> tuple[float, ...]:
        """Return the lowest and the highest value; with a step, the highest that it reaches."""
        return (self.low, self.high if self.step is None else self._value_at(self._n_steps()))

    def _value_at(self, i: int) -> float:
        return float(Decimal(str(self.low)) + i * Decimal(str(self.step)))

    def _n_steps(self) -> int:
        if self.step is None:
            raise ValueError("a range without a step has no list of values")
        return int((Decimal(str(self.high)) - Decimal(str(self.low))) // Decimal(str(self.step)))

    def describe(self) -> str:
        """Return the range in words, for messages."""
        return f"{self.low} to {self.high}" + (f" in steps of {self.step}" if self.step is not None else "")


class Int(BaseModel):
    """Whole numbers from low to high, both included."""

    model_config = ConfigDict(json_schema_extra={"required": ["low", "high", "type"]}, **STRICT)

    type: Literal["int"] = "int"
    low: Annotated[int, Field(ge=-LARGEST_EXACT_INT, le=LARGEST_EXACT_INT)]
    high: Annotated[int, Field(ge=-LARGEST_EXACT_INT, le=LARGEST_EXACT_INT)]
    log: bool = False
    """Sample evenly in the logarithm: as many values from 1 to 10 as from 10 to 100."""
    step: Annotated[int, Field(ge=1)] = 1
    """Take only low, low + step, low + 2 step and so on."""
    num: Num = None
    when: When = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num is not None and self.step > 1:
            raise ValueError("num and step exclude each other; remove one")
        _check_bounds(self.low, self.high, self.step if self.step > 1 else None, above=0 if self.log else None)
        if self.log and self.step > 1:
            raise ValueError("log and step exclude each other; remove one")
        return self

    def values(self) -> range:
        """Return all values of the range, ascending."""
        return range(self.low, self.high + 1, self.step)

    def contains(self, value: object) -> bool:
        """Return whether the value is in the range."""
        return type(value) is int and value in self.values()

    def points(self) -> Sequence[int]:
        """Return the values in a fixed design, ascending: num of them, rounded, each once, or all."""
        if self.num is None:
            return self.values()
        return tuple(dict.fromkeys(map(round, _spaced(self.low, self.high, self.num, log=self.log))))

    def extremes(self) -> tuple[int, ...]:
        """Return the lowest and the highest value; with a step, the highest that it reaches."""
        return (self.values()[0], self.values()[-1])

    def describe(self) -> str:
        """Return the range in words, for messages."""
        return f"{self.low} to {self.high}" + (f" in steps of {self.step}" if self.step > 1 else "")


class Categorical(BaseModel):
    """One of a list of values without an order: strings, numbers, true or false.

    A list is written as a string that the objective splits, a missing value as a word.
    """

    model_config = STRICT

    type: Literal["categorical"] = "categorical"
    choices: Annotated[tuple[Scalar, ...], Field(strict=False, min_length=1)]
    when: When = {}

    @field_validator("choices", mode="before")
    @classmethod
    def _check(cls, choices: object) -> object:
        seen: list[Scalar] = []
        for choice in choices if isinstance(choices, list | tuple) else ():
            _check_scalar(choice)
            # Optuna looks choices up by equality, so that 1, 1.0 and true are the same choice.
            if choice in seen:
                raise ValueError(f"{choice!r} is listed twice")
            same = next((other for other in seen if _label(other) == _label(choice)), None)
            if same is not None:
                raise ValueError(f"{choice!r} is shown like {same!r}; rename one of them")
            seen.append(choice)
        return choices

    def contains(self, value: object) -> bool:
        """Return whether the value is one of the choices; true is not 1."""
        return is_one_of(value, self.choices)

    def points(self) -> tuple[Scalar, ...]:
        """Return the values in a fixed design: all choices."""
        return self.choices

    def extremes(self) -> tuple[Scalar, ...]:
        """Return all choices, which have no order."""
        return self.choices

    def describe(self) -> str:
        """Return the choices in words, for messages."""
        return ", ".join(str(choice) for choice in self.choices)


def _as_string(choice: object) -> str:
    """Return how a list is written as a choice, or an empty string for another value."""
    if not isinstance(choice, list):
        return ""
    return f"; write {json.dumps(','.join(map(str, choice)))}, and split it in the objective"


def _label(choice: Scalar) -> str:
    """Return a choice as it is shown; those of Python and of TOML for true differ in case."""
    return str(choice).lower() if isinstance(choice, bool) or str(choice).lower() in {"true", "false"} else str(choice)


def _kind(data: Any) -> str:  # noqa: ANN401 - whatever stands in the file.
    if not isinstance(data, dict):
        return getattr(data, "type", "float")
    return str(data.get("type", "categorical" if "choices" in data else "float"))


Range = Annotated[
    Annotated[Float, Tag("float")] | Annotated[Int, Tag("int")] | Annotated[Categorical, Tag("categorical")],
    Discriminator(_kind),
]


def as_sampled(searched: Range, value: Scalar) -> Scalar:
    """Return a value of a range as a sampler returns it: 1 is 1.0 in a float range, and a choice is the range's own."""
    if isinstance(searched, Float):
        return float(value)
    if isinstance(searched, Categorical):
        return next(choice for choice in searched.choices if choice == value)
    return value


def describe_mismatch(range_: Range, value: object) -> str:
    """Return why a value is not in a range."""
    if isinstance(range_, Categorical):
        return not_one_of(value, range_.choices)
    expected = int if isinstance(range_, Int) else float
    if type(value) not in (int, expected):
        return f"{value!r} is not {TYPE_NAMES[expected]}"
    return f"{value!r} is outside {range_.describe()}"


def _spaced(low: float, high: float, num: int, *, log: bool) -> tuple[float, ...]:
    """Return up to num values from low to high, both exactly included, with equal distances or ratios.

    Distances are fractions and ratios have 12 digits, so that 0.1 to 0.3 has 0.2 and 0.001 to 0.1 has 0.01.
    """
    first, last = Fraction(str(low)), Fraction(str(high))
    parts = [Fraction(i, num - 1) for i in range(num)]
    if log:
        ratio = math.log(high) - math.log(low)
        values = [float(f"{math.exp(math.log(low) + part * ratio):.12g}") for part in parts]
    else:
        values = [float(first + part * (last - first)) for part in parts]
    return tuple(dict.fromkeys((low, *(min(max(value, low), high) for value in values[1:-1]), high)))


def _check_bounds(low: float, high: float, step: float | None, *, above: float | None) -> None:
    if low > high:
        raise ValueError(f"low {low} is above high {high}")
    if above is not None and low <= above:
        raise ValueError(f"low {low} is not above {above}, which log = true needs")
    if step is not None and step > high - low:
        raise ValueError(f"step {step} is above high - low, {high - low}")
    if step is not None and (high - low) / step > LARGEST_EXACT_INT:
        raise ValueError(f"step {step} is too small for a range from {low} to {high}")
