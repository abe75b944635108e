"""Owns the study file: what it may say, and what is refused before a GPU is spent.

Leaves what each parameter may be to hyperparameters.py, which combinations make sense to the objective's config,
and the samplers and pruners themselves to strategy.py.
"""

import importlib
import inspect
import json
import sys
import tomllib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from itertools import chain, combinations, islice, product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from hpopt.errors import ConfigError, StudyFileError, did_you_mean
from hpopt.hyperparameters import (
    HYPERPARAMETERS,
    TYPE_NAMES,
    Hyperparameter,
    Scalar,
    check_type,
    check_value,
    not_one_of,
)
from hpopt.search_space import STRICT, Categorical, Float, Int, Range
from hpopt.training.config import PRETRAIN_METRICS, PretrainConfig

# The objectives that come with hpopt: what each takes, and what it reports.
OBJECTIVES: dict[str, tuple[type[Any], tuple[str, ...]]] = {"pretrain": (PretrainConfig, PRETRAIN_METRICS)}

# A whole range is tried against the config up to this many values; of a longer one, the two lowest and the highest.
MAX_PROBES = 16
# About 0.2 s of building configs.
MAX_COMBINATIONS = 4096

# What pydantic refuses, by the name that it gives the refusal.
PROBLEMS = {
    "missing": "missing",
    "too_short": "empty",
    "value_error": "{error}",
    "finite_number": "{value!r} is not a finite number",
    "greater_than": "{value!r} is not above {gt:g}",
    "greater_than_equal": "{value!r} is below {ge}",
    "less_than_equal": "{value!r} is above {le}",
    "string_too_long": "{value!r} is longer than {max_length} characters",
    "string_pattern_mismatch": "{value!r} is no name; use letters, digits, '.', '_' and '-', a letter or digit first",
    "int_type": f"{{value!r}} is not {TYPE_NAMES[int]}",
    "float_type": f"{{value!r}} is not {TYPE_NAMES[float]}",
    "string_type": f"{{value!r}} is not {TYPE_NAMES[str]}",
    "bool_type": f"{{value!r}} is not {TYPE_NAMES[bool]}",
    "tuple_type": "{value!r} is not a list",
    "dict_type": "{value!r} is not a table",
    "model_type": "{value!r} is not a table",
}

POSTGRES_MAX_INT = 2**31 - 1
NUMPY_MAX_SEED = 2**32 - 1


class Budget(BaseModel):
    """What the whole fleet may spend together; the first limit reached ends the study."""

    model_config = STRICT

    trials: Annotated[int, Field(ge=1, le=POSTGRES_MAX_INT)] | None = None
    """Number of trials, pruned ones included."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Device hours of all workers together."""
    wall_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours since the first worker started."""
    target: float | None = None
    """Stop when the best value reaches this."""

    @model_validator(mode="after")
    def _end_somewhere(self) -> Self:
        if self.trials is None and self.gpu_hours is None and self.wall_hours is None:
            raise ValueError("no limit; give at least one of trials, gpu_hours, wall_hours")
        return self


class Sampler(BaseModel):
    """How the next trial is chosen."""

    model_config = STRICT

    name: Literal["tpe", "random", "grid"] = "tpe"
    """tpe models what is good so far, random does not look, grid tries every combination."""
    seed: Annotated[int, Field(ge=0, le=NUMPY_MAX_SEED)] = 0
    """Each trial's sampler is seeded from this and the trial's number."""
    n_startup_trials: Annotated[int, Field(ge=0)] = 10
    """Random trials before tpe starts to model."""


class Pruner(BaseModel):
    """How a hopeless trial is stopped early."""

    model_config = STRICT

    name: Literal["asha", "median", "none"] = "asha"
    """asha keeps the best of each rung, median those better than the median, none keeps all."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """One trial in this many goes on from a rung, and the next rung is this many times further."""
    min_fraction: Annotated[float, Field(gt=0, le=1)] = 1 / 9
    """The first rung, as a fraction of a trial's schedule."""


class StudyFile(BaseModel):
    """One study as its file describes it: what is searched, what is fixed, and when to stop.

    Raises ConfigError where the parts do not go together, naming the key.
    """

    model_config = STRICT

    # A first letter or digit, so that no name is an option of the command line or a way out of a folder.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Letters, digits, `.`, `_` and `-`; unique in a database."""
    objective: str = "pretrain"
    """`pretrain`, or a training function of your own as `package.module:function`."""
    metric: str = "val_loss"
    """The metric to optimize, one that the objective reports."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Whether a low or a high value of the metric is good."""
    budget: Budget
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    search_space: Annotated[dict[str, Range], Field(min_length=1)]
    """The parameters to search, each a range or a list of choices."""
    fixed: dict[str, Any] = {}
    """What the objective takes and the search does not move; its defaults hold for the rest."""
    enqueue: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    """Known configurations to try first; what an entry leaves out is sampled."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        _check_study(self)
        return self

    def config(self, params: Mapping[str, Any], seed: int | None = None) -> Any:  # noqa: ANN401 - the objective's.
        """Build the config of a trial from what is fixed, its params and its seed.

        Raises ConfigError where the config refuses them.
        """
        values = {**self.fixed, **params} if seed is None else {**self.fixed, **params, "seed": seed}
        return _build(self.objective, values)

    def default_params(self) -> dict[str, Scalar] | None:
        """Give the objective's defaults for what is searched, or None when one is missing or outside of its range."""
        defaults: dict[str, Any] = {f.name: f.default for f in fields(config_class(self.objective))}
        params = {name: defaults[name] for name in self.search_space}
        inside = all(self.search_space[name].contains(value) for name, value in params.items())
        return params if inside else None


def read_study_file(path: Path) -> StudyFile:
    """Read and check a study file; raises StudyFileError with one line saying what, where and the nearest right one."""
    try:
        # utf-8-sig, because editors on Windows put a byte order mark in front.
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        siblings = [sibling.name for sibling in path.parent.glob("*.toml")]
        raise StudyFileError(f"{path}: no such file{did_you_mean(path.name, siblings)}") from error
    except OSError as error:
        raise StudyFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StudyFileError(f"{path}: not UTF-8 (at byte {error.start})") from error
    return parse_study_file(text, str(path))


def parse_study_file(text: str, source: str) -> StudyFile:
    """Check the text of a study file; `source` is the name that the message of StudyFileError starts with."""
    try:
        return StudyFile.model_validate(tomllib.loads(text))
    except ValidationError as error:
        # A misspelled key is missing as well: the unknown one is what to correct.
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        message = _translate(problems[0])
    except ConfigError as error:
        message = str(error)
    except ValueError as error:
        message = f"not TOML: {error}"
    raise StudyFileError(" ".join(f"{source}: {message}".splitlines()))


def config_class(objective: str) -> type[Any]:
    """Give the frozen dataclass that an objective takes; raises ConfigError naming `objective`.

    For `package.module:function` it is the annotation of the function's first parameter. It needs a field `seed`,
    since a trial is params and a seed.
    """
    if objective in OBJECTIVES:
        return OBJECTIVES[objective][0]
    function = import_function(objective)
    try:
        annotations = inspect.get_annotations(function, eval_str=True)
    except NameError as error:
        raise ConfigError("objective", f"{objective}: an annotation cannot be resolved: {error}") from error
    found = annotations.get(next(iter(inspect.signature(function).parameters), ""))
    # Without "frozen" a training function could change the config that is on record for its trial.
    if not (isinstance(found, type) and is_dataclass(found) and found.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise ConfigError("objective", f"{objective}: its first parameter is not annotated with a frozen dataclass")
    if "seed" not in _field_types(found):
        raise ConfigError("objective", f"{objective}: {found.__name__} has no field seed; a trial is params and a seed")
    return found


def import_function(objective: str) -> Callable[..., Any]:
    """Import the function of `package.module:function`; raises ConfigError naming `objective`."""
    module_name, _, function_name = objective.partition(":")
    if not module_name or not function_name:
        problem = f"'{objective}' is neither {', '.join(OBJECTIVES)} nor package.module:function"
        raise ConfigError("objective", problem + did_you_mean(objective, OBJECTIVES))
    try:
        module = importlib.import_module(module_name)
    # Other people's code runs here and may raise anything.
    except Exception as error:
        raise ConfigError("objective", f"cannot import {module_name}: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not inspect.isfunction(function):
        functions = [name for name, _ in inspect.getmembers(module, inspect.isfunction)]
        problem = f"{module_name} has no function {function_name}{did_you_mean(function_name, functions)}"
        raise ConfigError("objective", problem)
    return function


def space_difference(new: StudyFile, old: StudyFile) -> str | None:
    """Say in a sentence what makes the trials of one study useless to the other, or None.

    Budget, sampler, pruner and enqueued configurations may differ: they only choose which trials there are.
    """
    for key in ("objective", "metric", "direction"):
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


def study_file_schema() -> dict[str, Any]:
    """Give the JSON schema of a study file, for editors; what an objective takes is checked in Python."""
    schema = StudyFile.model_json_schema()
    values = {name: _value_schema(entry) for name, entry in HYPERPARAMETERS.items()}
    searchable = {name: entry for name, entry in HYPERPARAMETERS.items() if name != "seed"}
    sections = schema["properties"]
    sections["search_space"]["properties"] = {name: _range_schema(entry) for name, entry in searchable.items()}
    sections["fixed"]["properties"] = values
    sections["enqueue"]["items"]["properties"] = {name: values[name] for name in searchable}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


# What is refused, in the order in which it is easiest to correct.


def _check_study(study: StudyFile) -> None:
    taken = _field_types(config_class(study.objective))
    _, metrics = OBJECTIVES.get(study.objective, (None, ()))
    if metrics and study.metric not in metrics:
        raise ConfigError("metric", not_one_of(study.metric, metrics))
    for section in ("search_space", "fixed"):
        for name in getattr(study, section):
            if name not in taken:
                raise ConfigError(f"{section}.{name}", f"{study.objective} does not take it{did_you_mean(name, taken)}")
    _check_values(study)
    _check_enqueued(study)
    _check_strategy(study)
    _check_combinations(study)


def _check_values(study: StudyFile) -> None:
    for name, value in study.fixed.items():
        _check_one(study.objective, f"fixed.{name}", value)
        if name in study.search_space:
            raise ConfigError(
                f"fixed.{name}", f"{value!r} is fixed and searched at once; drop it here or in search_space"
            )
    for name, searched in study.search_space.items():
        key = f"search_space.{name}"
        if name == "seed":
            raise ConfigError(key, "a trial is params and a seed; the seed is not searched")
        _check_kind(key, searched, _field_types(config_class(study.objective))[name])
        labels = ("choice",) * len(searched.extremes()) if isinstance(searched, Categorical) else ("low", "high")
        for label, value in zip(labels, searched.extremes(), strict=True):
            _check_one(study.objective, key, value, label=f"{label} ")


def _check_kind(key: str, searched: Float | Int | Categorical, expected: object) -> None:
    if isinstance(searched, Float) and expected is int:
        raise ConfigError(key, 'only whole numbers make sense; add type = "int"')
    if not isinstance(searched, Categorical) and expected in (str, bool):
        raise ConfigError(key, "it has no order to search a range of; write { choices = [...] }")


def _check_one(objective: str, key: str, value: object, *, label: str = "") -> None:
    try:
        _in_type(config_class(objective), key.rpartition(".")[2], value)
    except ConfigError as error:
        raise ConfigError(key, label + error.problem) from error


def _check_enqueued(study: StudyFile) -> None:
    for i, params in enumerate(study.enqueue):
        for name, value in params.items():
            key = f"enqueue[{i}].{name}"
            if name not in study.search_space:
                raise ConfigError(key, f"not searched{did_you_mean(name, study.search_space)}")
            _check_one(study.objective, key, value)
            searched = study.search_space[name]
            if not searched.contains(value):
                choices = searched.choices if isinstance(searched, Categorical) else None
                outside = f"{value!r} is outside {searched.describe()}"
                raise ConfigError(key, not_one_of(value, choices) if choices else outside)


def _check_strategy(study: StudyFile) -> None:
    if study.pruner.name == "asha" and "max_steps" in study.search_space:
        remedy = 'fix max_steps, or set pruner.name = "none"'
        raise ConfigError("search_space.max_steps", f"asha compares trials at points of one schedule; {remedy}")
    for name, searched in study.search_space.items():
        _check_used(study, name)
        if study.sampler.name == "grid" and isinstance(searched, Float) and searched.step is None:
            remedy = "add a step, or write { choices = [...] }"
            raise ConfigError(f"search_space.{name}", f"a grid needs a list of values; {remedy}")


def _check_used(study: StudyFile, name: str) -> None:
    """Refuse to search what does nothing: importance would still rank it, by chance."""
    entry = HYPERPARAMETERS.get(name)
    if study.objective not in OBJECTIVES or entry is None or entry.unused_if is None:
        return
    switch, off = entry.unused_if
    if study.fixed.get(switch) == off:
        raise ConfigError(
            f"search_space.{name}", f"does nothing with {switch} = {off!r}; drop it, or search {switch} too"
        )


def _check_combinations(study: StudyFile) -> None:
    for params in _combinations(study.search_space):
        try:
            study.config(params)
        except (ConfigError, TypeError, ValueError) as error:
            raise _blame(study, params, error) from error


def _combinations(space: Mapping[str, Float | Int | Categorical]) -> Iterator[dict[str, Any]]:
    """Give the values of what is counted or chosen, alone, in pairs, and all at their extremes; the rest at its low.

    Corners alone would pass widths from 96 to 384 that 8 heads do not divide.
    """
    lows = {name: searched.extremes()[0] for name, searched in space.items()}
    counted = {name: searched for name, searched in space.items() if not isinstance(searched, Float)}
    alone = ({name: probe} for name, searched in counted.items() for probe in _probes(searched))
    pairs = (
        {a: probe_a, b: probe_b}
        for a, b in combinations(counted, 2)
        for probe_a, probe_b in product(_probes(counted[a]), _probes(counted[b]))
    )
    extremes = product(*(searched.extremes() for searched in counted.values()))
    corners = (dict(zip(counted, corner, strict=True)) for corner in extremes)
    for chosen in islice(chain(alone, pairs, corners), MAX_COMBINATIONS):
        yield {**lows, **chosen}


def _probes(searched: Int | Categorical) -> Iterable[Scalar]:
    if isinstance(searched, Categorical):
        return searched.choices
    values = searched.values()
    # If the heads divide the two lowest widths, they divide their difference and so all widths.
    return values if len(values) <= MAX_PROBES else (values[0], values[1], values[-1])


def _blame(study: StudyFile, params: Mapping[str, Any], error: Exception) -> ConfigError:
    """Name the key of the file at fault: the config's own, or that without which there is no error."""
    key = error.key if isinstance(error, ConfigError) else None
    problem = error.problem if isinstance(error, ConfigError) else str(error)
    values = {**study.fixed, **params}
    if key in values:
        return ConfigError(_place(study, key), problem)
    for name, value in values.items():
        try:
            _build(study.objective, {other: v for other, v in values.items() if other != name})
        except (ConfigError, TypeError, ValueError):
            continue
        clash = f"{value!r} does not go with the default of {key}: " if key else ""
        return ConfigError(_place(study, name), clash + problem)
    return ConfigError(f"fixed.{key}" if key else "fixed", problem)


def _place(study: StudyFile, name: str) -> str:
    return f"fixed.{name}" if name in study.fixed else f"search_space.{name}"


# How a config is built.


def _build(objective: str, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the objective's.
    config = config_class(objective)
    for f in fields(config):
        if f.init and f.default is MISSING and f.default_factory is MISSING and f.name not in values:
            raise ConfigError(f.name, f"missing; {config.__name__} has no default for it")
    return config(**{name: _in_type(config, name, value) for name, value in values.items()})


def _in_type(config: type[Any], name: str, value: object) -> object:
    if config is PretrainConfig:
        return check_value(name, value)
    expected = _field_types(config)[name]
    return check_type(name, value, expected) if expected in TYPE_NAMES else value


def _field_types(config: type[Any]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(config)
    except NameError as error:
        raise ConfigError("objective", f"an annotation of {config.__name__} cannot be resolved: {error}") from error
    return {f.name: hints[f.name] for f in fields(config) if f.init}


# How pydantic's errors become ours.


def _translate(error: Any) -> str:  # noqa: ANN401 - pydantic_core.ErrorDetails, a TypedDict of Any.
    loc = list(error["loc"])
    known = _model_at(loc).model_fields
    problem = _problem(error, known)
    if loc[0] == "search_space" and len(loc) > 2:  # noqa: PLR2004 - the section, the parameter, and pydantic's tag.
        del loc[2]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return f"{key.removeprefix('.')}: {problem}"


def _model_at(loc: list[int | str]) -> type[BaseModel]:
    """Give the model in which the last part of loc is a key."""
    ranges: dict[Any, type[BaseModel]] = {"float": Float, "int": Int, "categorical": Categorical}
    sections: dict[Any, type[BaseModel]] = {"budget": Budget, "sampler": Sampler, "pruner": Pruner}
    if loc[0] == "search_space" and len(loc) > 2:  # noqa: PLR2004 - as in _translate.
        return ranges[loc[2]]
    return sections.get(loc[0], StudyFile) if len(loc) > 1 else StudyFile


def _problem(error: Any, known: Mapping[str, Any]) -> str:  # noqa: ANN401 - as in _translate.
    value, loc, kind = error["input"], error["loc"], error["type"]
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(loc[-1]), known)}"
    if kind == "literal_error":
        return not_one_of(value, typing.get_args(known[loc[-1]].annotation))
    if kind == "union_tag_invalid":
        return f"type {not_one_of(value['type'], ('float', 'int', 'categorical'))}"
    if kind == "model_type" and loc[0] == "search_space":
        return f"{value!r} is no range; write {{ low = ..., high = ... }} or {{ choices = [...] }}"
    if kind == "tuple_type" and loc[0] == "enqueue":
        return "not a list; write [[enqueue]]"
    return PROBLEMS.get(kind, "{value!r} is not what belongs here").format(value=value, **error.get("ctx", {}))


# How two studies and two ranges differ, and how the dictionary becomes a schema.


def _range_difference(new: Float | Int | Categorical | None, old: Float | Int | Categorical | None) -> str | None:
    if new is None or old is None:
        return None if new is old else f"{_range_words(new)}, was {_range_words(old)}"
    if new.type != old.type:
        return f"{new.type} {new.describe()}, was {old.type} {old.describe()}"
    for key in type(new).model_fields:
        if getattr(new, key) != getattr(old, key):
            return f"{key} {getattr(new, key)}, was {getattr(old, key)}"
    return None


def _range_words(searched: Float | Int | Categorical | None) -> str:
    return searched.describe() if searched else "not searched"


def _value_schema(entry: Hyperparameter) -> dict[str, Any]:
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    schema = {"description": _description(entry), "type": names[entry.type], "default": entry.default}
    bounds = {
        "exclusiveMinimum" if entry.low_open else "minimum": entry.low,
        "exclusiveMaximum" if entry.high_open else "maximum": entry.high,
    }
    schema |= {key: bound for key, bound in bounds.items() if bound is not None}
    return schema | ({"enum": list(entry.choices)} if entry.choices else {})


def _range_schema(entry: Hyperparameter) -> dict[str, Any]:
    ranges = {int: ("Int",), float: ("Float", "Int")}.get(entry.type, ())
    references = [{"$ref": f"#/$defs/{name}"} for name in (*ranges, "Categorical")]
    return {"description": _description(entry), "anyOf": references}


def _description(entry: Hyperparameter) -> str:
    unit = f" ({entry.unit})" if entry.unit else ""
    return f"{entry.meaning}{unit}"


if __name__ == "__main__":
    # python -m hpopt.study > studies/study.schema.json
    sys.stdout.write(json.dumps(study_file_schema(), indent=2) + "\n")
