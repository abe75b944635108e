"""Check the conditions of a study file: the parameters that `when` names, and the values that it gives for them."""

from collections.abc import Mapping
from typing import Any

from hpopt.errors import ConfigError, did_you_mean
from hpopt.hyperparameters import HYPERPARAMETERS, Scalar
from hpopt.search.conditions import condition_to_toml, describe_condition, find_conditions, is_active
from hpopt.search.space import Categorical, Float, Int, Range, describe_mismatch, is_one_of
from hpopt.study.file import StudyFile
from hpopt.study.objectives import OBJECTIVES, config_class, in_type

# A condition of more values is not suggested.
_MAX_SUGGESTED = 8


def check_conditions(study: StudyFile) -> None:
    """Raise ConfigError for a condition that no trial can meet, or on a parameter that has no value."""
    space = study.search_space
    for name, searched in space.items():
        for parent, values in searched.when.items():
            key = f"search_space.{name}.when.{parent}"
            if parent in space:
                _check_searched(key, space[parent], values)
            elif parent in study.fixed:
                _check_fixed(study, key, parent, values)
            else:
                valid = {*space, *study.fixed} - {name}
                raise ConfigError(key, f"neither searched nor fixed{did_you_mean(parent, valid)}")
    for name, condition in find_conditions(space).items():
        for parent, values in condition.items():
            if not values:
                problem = f"never active: the conditions on {parent} exclude each other"
                raise ConfigError(f"search_space.{name}.when", problem)


def _check_searched(key: str, parent: Range, values: tuple[Scalar, ...]) -> None:
    if isinstance(parent, Float) and parent.step is None:
        raise ConfigError(key, "searched in a range without a list of values; add a step, or write { choices = [...] }")
    for value in values:
        if not parent.contains(value):
            raise ConfigError(key, describe_mismatch(parent, value))


def _check_fixed(study: StudyFile, key: str, parent: str, values: tuple[Scalar, ...]) -> None:
    for value in values:
        try:
            in_type(config_class(study.objective), parent, value)
        except ConfigError as error:
            raise ConfigError(key, error.problem) from error
    fixed = study.fixed[parent]
    if not is_one_of(fixed, values):
        raise ConfigError(key, f"never active with {parent} = {fixed!r} in [fixed]; remove it, or search {parent} too")


def check_active(space: Mapping[str, Range], params: Mapping[str, Any]) -> None:
    """Raise ConfigError, with the name as key, for a value of a parameter that is inactive with the given params."""
    for name, condition in find_conditions(space).items():
        if name in params and not is_active(condition, params):
            missing = [parent for parent in condition if parent not in params]
            remedy = f"give {missing[0]} too" if missing else f"remove {name}"
            raise ConfigError(name, f"active only where {describe_condition(condition)}; {remedy}")


def check_used(study: StudyFile, name: str) -> None:
    """Raise ConfigError for a searched parameter without effect, which importance would rank by chance."""
    entry = HYPERPARAMETERS.get(name)
    if study.objective not in OBJECTIVES or entry is None or entry.switch is None:
        return
    fixed = (study.fixed[entry.switch],) if entry.switch in study.fixed else ()
    values = study.search_space[name].when.get(entry.switch, fixed)
    if values and all(entry.is_unused({entry.switch: value}) for value in values):
        problem = f"has no effect with {entry.switch} = {values[0]!r}"
        suggested = suggest_condition(study, name)
        remedy = f"write {suggested}" if suggested else f"remove it, or search {entry.switch} too"
        raise ConfigError(f"search_space.{name}", f"{problem}; {remedy}")


def suggest_condition(study: StudyFile, name: str) -> str | None:
    """Return the `when` of a parameter that has no effect with some values of another searched one, or None."""
    entry = HYPERPARAMETERS.get(name)
    parent = study.search_space.get(entry.switch) if entry and entry.switch else None
    if study.objective not in OBJECTIVES or entry is None or not isinstance(parent, Categorical | Int):
        return None
    values = parent.choices if isinstance(parent, Categorical) else parent.values()
    useful = [value for value in values if not entry.is_unused({str(entry.switch): value})]
    if len(useful) == len(values) or not 0 < len(useful) <= _MAX_SUGGESTED:
        return None
    return condition_to_toml({str(entry.switch): tuple(useful)})


def describe_unused(study: StudyFile) -> list[str]:
    """Return a line for each searched parameter without effect in some trials, with the `when` to write."""
    unconditional = (name for name, searched in study.search_space.items() if not searched.when)
    suggested = {name: suggest_condition(study, name) for name in unconditional}
    return [
        f"{name} has no effect in some trials; add {condition}" for name, condition in suggested.items() if condition
    ]
