"""Define the sections and keys of a study file, and compare two files."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from hpopt.formats import to_json
from hpopt.hyperparameters import Scalar
from hpopt.search.conditions import active_params, describe_condition, find_conditions
from hpopt.search.direction import Direction
from hpopt.search.space import STRICT, Range
from hpopt.study.objectives import build_config, config_class

POSTGRES_MAX_INT = 2**31 - 1
NUMPY_MAX_SEED = 2**32 - 1
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
    target: float | None = None
    """Stop when the best value reaches this."""

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.trials is None and self.gpu_hours is None and self.wall_hours is None:
            raise ValueError("no limit; give at least one of trials, gpu_hours, wall_hours")
        return self


class Sampler(BaseModel):
    """How the next trial is chosen."""

    model_config = STRICT

    name: Literal["tpe", "random", "grid"] = "tpe"
    """tpe samples near the best trials so far, random samples uniformly, grid tries every combination."""
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


class StudyFile(BaseModel):
    """One study as its file describes it: what is searched, what is fixed, and when to stop."""

    model_config = STRICT

    # It begins with a letter or digit, so that no name is a command-line option or a path to another folder.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
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
    budget: Budget
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    confirm: Confirm | None = None
    search_space: Annotated[dict[str, Range], Field(min_length=1)]
    """The parameters to search, each a range or a list of choices."""
    fixed: dict[str, Any] = {}
    """Parameters with constant values; the objective's defaults hold for the rest."""
    enqueue: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    """Configurations to try first; parameters that an entry leaves out are sampled."""

    @field_validator("search_space")
    @classmethod
    def _check_conditions(cls, space: dict[str, Range]) -> dict[str, Range]:
        find_conditions(space)
        return space

    def config(self, params: Mapping[str, Any], seed: int | None = None) -> Any:  # noqa: ANN401 - the objective's.
        """Return the config of a trial from the fixed values, its params and its seed. Raises ConfigError."""
        values = {**self.fixed, **params} if seed is None else {**self.fixed, **params, "seed": seed}
        return build_config(self.objective, values)

    def summarize(self, value: float | None, latest: float) -> float:
        """Return the value of a run from its value so far, if any, and its latest metric."""
        if value is None or self.summary == "last":
            return latest
        return latest if self.direction.sign * latest < self.direction.sign * value else value

    def default_params(self) -> dict[str, Scalar] | None:
        """Return the objective's defaults of what is searched, or None if one is missing or outside of its range."""
        defaults: dict[str, Any] = {f.name: f.default for f in fields(config_class(self.objective))}
        params = active_params(self.search_space, {name: defaults[name] for name in self.search_space})
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
        if isinstance(value, Mapping) and f"{prefix}{key}" in {"budget", "sampler", "pruner", "confirm"}:
            yield from _flatten(f"{key}.", value)
        elif prefix or key in {"enqueue", "keep"}:
            yield f"{prefix}{key}", _NOT_GIVEN if value in (None, []) else _text(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else to_json(value)


def space_difference(new: StudyFile, old: StudyFile) -> str | None:
    """Return the first difference that makes the trials of two studies incomparable, or None.

    Budget, sampler, pruner and enqueued configurations may differ: they only choose which trials there are.
    """
    for key in ("objective", "metric", "direction", "summary"):
        if getattr(new, key) != getattr(old, key):
            return f"{key}: {getattr(new, key)}, was {getattr(old, key)}"
    for name in sorted({*new.search_space, *old.search_space}):
        difference = _range_difference(new.search_space.get(name), old.search_space.get(name))
        if difference:
            return f"search_space.{name}: {difference}"
    for name in sorted({*new.fixed, *old.fixed}):
        if new.fixed.get(name) != old.fixed.get(name):
            return f"fixed.{name}: {new.fixed.get(name, 'not given')}, was {old.fixed.get(name, 'not given')}"
    return None


def _range_difference(new: Range | None, old: Range | None) -> str | None:
    if new is None or old is None:
        return None if new is old else f"{_range_words(new)}, was {_range_words(old)}"
    if new.type != old.type:
        return f"{new.type} {new.describe()}, was {old.type} {old.describe()}"
    for key in type(new).model_fields:
        one, other = getattr(new, key), getattr(old, key)
        if one != other:
            words = [describe_condition(value) or "always" if key == "when" else value for value in (one, other)]
            return f"{key} {words[0]}, was {words[1]}"
    return None


def _range_words(searched: Range | None) -> str:
    return searched.describe() if searched else "not searched"
