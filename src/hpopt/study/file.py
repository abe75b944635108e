"""Define the sections and keys of a study file, and compare two files."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_serializer, model_validator

from hpopt.errors import ConfigError
from hpopt.formats import to_json
from hpopt.hyperparameters import Scalar
from hpopt.search.conditions import active_params, describe_condition, find_conditions
from hpopt.search.direction import Direction
from hpopt.search.space import STRICT, Range
from hpopt.study.derived import parse_expression
from hpopt.study.objectives import build_config, config_class, field_types

POSTGRES_MAX_INT = 2**31 - 1
NUMPY_MAX_SEED = 2**32 - 1
MAX_SEEDS = 10_000
# The samplers that run a fixed list of configurations, and search nothing.
FIXED_DESIGNS = ("grid", "one_at_a_time")
# It begins with a letter or digit, so that no name is a command-line option or a path to another folder.
NAME_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_NOT_GIVEN = "not given"


class Budget(BaseModel):
    """Limits of the whole fleet together; the first one reached finishes the study."""

    model_config = STRICT

    trials: Annotated[int, Field(ge=1, le=POSTGRES_MAX_INT)] | None = None
    """Number of trials, pruned ones included."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Device hours of all workers together."""
    wall_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours in which a trial was running; a night between two runs does not count."""
    tokens: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    """Tokens that all trials together train on; those that a retry repeats count once."""
    target: float | None = None
    """Stop when the best value reaches this."""


class Sampler(BaseModel):
    """How the next trial is chosen."""

    model_config = STRICT

    name: Literal["tpe", "random", "grid", "one_at_a_time"] = "tpe"
    """tpe samples near the best trials so far, random samples uniformly; the fixed designs: grid tries every
    combination, one_at_a_time each value of each parameter with the others as in `base`."""
    base: dict[str, Any] = {}
    """The configuration that one_at_a_time varies; the objective's defaults hold for the rest."""
    seed: Annotated[int, Field(ge=0, le=NUMPY_MAX_SEED)] = 0
    """Each trial's sampler is seeded from this and the trial's number."""
    n_startup_trials: Annotated[int, Field(ge=0)] = 10
    """Number of random trials before tpe."""


class Pruner(BaseModel):
    """How an unpromising trial is stopped early: at rungs, fractions of its schedule at which trials are compared."""

    model_config = STRICT

    name: Literal["asha", "median", "none"] = "asha"
    """asha continues the best of each rung, median those better than the median, none all."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """One trial in this many continues from a rung, and the next rung has this many times the steps."""
    min_fraction: Annotated[float, Field(gt=0, le=1)] = 1 / 9
    """The first rung, as a fraction of a trial's schedule; rungs within a searched warmup are left out."""


class Confirm(BaseModel):
    """Run the best configurations of the search again, all with the same fresh seeds."""

    model_config = STRICT

    top: Annotated[int, Field(ge=2)] = 3
    """How many configurations."""
    seeds: Annotated[int, Field(ge=2)] = 4
    """How many runs of each."""


def default_pruner(sampler: Sampler, arms: Mapping[str, Any]) -> Pruner:
    """Return the pruner of a study file without one: a fixed design runs all its trials to their end."""
    return Pruner(name="none") if arms or sampler.name in FIXED_DESIGNS else Pruner()


class Enqueued(BaseModel):
    """A configuration to try first; without the key `params`, the keys are the parameters."""

    model_config = STRICT

    params: dict[str, Any] = {}
    """Parameters that it leaves out are sampled; those of one_at_a_time are as in its base."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """The objective's own if not given."""
    note: str | None = None
    """Why it is tried, a user attribute of its trial."""

    @model_validator(mode="before")
    @classmethod
    def _take_bare_params(cls, entry: object) -> object:
        return entry if not isinstance(entry, Mapping) or "params" in entry else {"params": entry}

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        others = {key: value for key, value in (("seed", self.seed), ("note", self.note)) if value is not None}
        return {"params": self.params, **others} if others else self.params


def _check_expression(text: str) -> str:
    parse_expression(text)
    return text


class Compare(BaseModel):
    """How the arms of a comparison are judged; each is compared with the first."""

    model_config = STRICT

    indifference: Annotated[float, Field(gt=0)] | None = None
    """The smallest difference that matters, in units of the metric: arms that surely differ by less are equivalent."""


class StudyFile(BaseModel):
    """One study as its file describes it: what is searched or compared, what is fixed, and when to stop."""

    model_config = STRICT

    name: Annotated[str, Field(pattern=NAME_PATTERN.pattern, max_length=100)]
    """Letters, digits, `.`, `_` and `-`; unique in a database."""
    objective: str = "pretrain"
    """`pretrain`, or a training function of your own as `package.module:function`."""
    metric: str = "val_loss"
    """The metric to optimize, one that the objective reports."""
    direction: Annotated[Direction, Field(strict=False)] = Direction.MINIMIZE
    """Whether a low or a high value of the metric is good."""
    keep: Annotated[int, Field(ge=0)] = 1
    """How many of the best complete trials keep the files of their run folders, such as checkpoints."""
    summary: Literal["last", "best"] = "last"
    """Which evaluation of a run is its value; with best, a rung compares the best so far."""
    seeds: Annotated[int, Field(ge=1, le=MAX_SEEDS)] = 1
    """Runs of each configuration of a fixed design, the same seeds for all: the objective's own and those after it."""
    arms: dict[str, dict[str, Any]] = {}
    """The arms of a comparison: values over those of `fixed`, for each arm by its name; the first is the baseline."""
    budget: Budget = Budget()
    sampler: Sampler = Sampler()
    pruner: Pruner = Field(default_factory=lambda valid: default_pruner(valid["sampler"], valid["arms"]))
    """By default asha for a search, none for a fixed design."""
    confirm: Confirm | None = None
    compare: Compare = Compare()
    search_space: Annotated[dict[str, Range], Field(min_length=1)] = {}
    """The parameters to search, each a range or a list of choices; required without `arms`."""
    derived: dict[str, Annotated[str, AfterValidator(_check_expression)]] = {}
    """Parameters as arithmetic on searched, fixed and earlier derived ones: numbers, names, + - * / **, min, max."""
    fixed: dict[str, Any] = {}
    """Parameters with constant values; the objective's defaults hold for the rest."""
    enqueue: Annotated[tuple[Enqueued, ...], Field(strict=False)] = ()
    """Configurations to try first."""

    @field_validator("search_space")
    @classmethod
    def _check_conditions(cls, space: dict[str, Range]) -> dict[str, Range]:
        find_conditions(space)
        return space

    @property
    def is_fixed_design(self) -> bool:
        """Whether the configurations are known before the first trial, as those of a grid and arms are."""
        return bool(self.arms) or self.sampler.name in FIXED_DESIGNS

    def config(self, params: Mapping[str, Any], seed: int | None = None, arm: str | None = None) -> Any:  # noqa: ANN401 - the objective's.
        """Return the config of a trial from the fixed values, its arm, params and seed. Raises ConfigError."""
        values = {**self.fixed, **self.arms.get(arm or "", {}), **params}
        if self.derived:
            values |= self.derive(params, arm)
            taken = field_types(config_class(self.objective))
            values = {name: value for name, value in values.items() if name in taken or name not in self.search_space}
            integers = {name for name in self.derived if name in values and taken.get(name) is int}
            values |= {name: int(values[name]) for name in integers if values[name] == int(values[name])}
        return build_config(self.objective, values if seed is None else {**values, "seed": seed})

    def arm_values(self, defaults: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return, for each arm, its values of the parameters that any arm sets, given the objective's defaults."""
        names = dict.fromkeys(name for values in self.arms.values() for name in values)
        known = {**defaults, **self.fixed}
        return {
            arm: {name: values.get(name, known.get(name)) for name in names if name in values or name in known}
            for arm, values in self.arms.items()
        }

    def derive(self, params: Mapping[str, Any], arm: str | None = None) -> dict[str, int | float]:
        """Return the derived values of a trial. Raises ConfigError.

        One that depends on an inactive parameter is left out.
        """
        values, derived = {**self.fixed, **self.arms.get(arm or "", {}), **params}, {}
        for name, text in self.derived.items():
            expression = parse_expression(text)
            if values.keys() >= set(expression.names):
                try:
                    values[name] = derived[name] = expression.evaluate(values)
                except ValueError as error:
                    raise ConfigError(name, str(error)) from error
        return derived

    def summarize(self, value: float | None, latest: float) -> float:
        """Return the value of a run from its value so far, if any, and its latest metric."""
        if value is None or self.summary == "last":
            return latest
        return latest if self.direction.sign * latest < self.direction.sign * value else value

    def default_params(self) -> dict[str, Scalar] | None:
        """Return the objective's defaults of what is searched, or None if one is missing or outside of its range."""
        defaults: dict[str, Any] = {f.name: f.default for f in fields(config_class(self.objective))}
        params = active_params(self.search_space, {name: defaults.get(name) for name in self.search_space})
        inside = all(self.search_space[name].contains(value) for name, value in params.items())
        return params if inside else None


def file_changes(new: StudyFile, old: StudyFile) -> dict[str, tuple[str, str]]:
    """Return the keys in which two files of one study differ, each with the new and the old value."""
    one, other = (dict(_flatten("", file.model_dump(mode="json"))) for file in (new, old))
    keys = dict.fromkeys((*one, *other))
    pairs = {key: (one.get(key, _NOT_GIVEN), other.get(key, _NOT_GIVEN)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flatten(prefix: str, section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys of the sections whose keys can change, with their values as text."""
    for key, value in section.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" in {"budget", "sampler", "pruner", "confirm", "compare"}:
            yield from _flatten(f"{key}.", value)
        elif prefix or key in {"enqueue", "keep", "seeds"}:
            yield f"{prefix}{key}", _NOT_GIVEN if value in (None, []) else _text(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else to_json(value)


def space_difference(new: StudyFile, old: StudyFile) -> str | None:
    """Return the first difference that makes the trials of two studies incomparable, or None.

    Budget, sampler, pruner, enqueued configurations and num may differ: they only choose which trials there are.
    """
    for key in ("objective", "metric", "direction", "summary"):
        if getattr(new, key) != getattr(old, key):
            return f"{key}: {getattr(new, key)}, was {getattr(old, key)}"
    for name in sorted({*new.search_space, *old.search_space}):
        difference = _range_difference(new.search_space.get(name), old.search_space.get(name))
        if difference:
            return f"search_space.{name}: {difference}"
    if list(new.arms) != list(old.arms):
        return f"arms: {', '.join(new.arms) or _NOT_GIVEN}, was {', '.join(old.arms) or _NOT_GIVEN}"
    sections = {"fixed": (new.fixed, old.fixed), "derived": (new.derived, old.derived)}
    sections |= {f"arms.{arm}": (values, old.arms[arm]) for arm, values in new.arms.items()}
    for section, (values, others) in sections.items():
        for name in sorted({*values, *others}):
            if values.get(name) != others.get(name):
                return f"{section}.{name}: {values.get(name, _NOT_GIVEN)}, was {others.get(name, _NOT_GIVEN)}"
    return None


def _range_difference(new: Range | None, old: Range | None) -> str | None:
    if new is None or old is None:
        return None if new is old else f"{_range_words(new)}, was {_range_words(old)}"
    if new.type != old.type:
        return f"{new.type} {new.describe()}, was {old.type} {old.describe()}"
    for key in type(new).model_fields.keys() - {"num"}:
        one, other = getattr(new, key), getattr(old, key)
        if one != other:
            words = [describe_condition(value) or "always" if key == "when" else value for value in (one, other)]
            return f"{key} {words[0]}, was {words[1]}"
    return None


def _range_words(searched: Range | None) -> str:
    return searched.describe() if searched else "not searched"
