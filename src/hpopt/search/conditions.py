"""Decide which parameters of a search space are active: those whose `when` the params of a trial meet."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hpopt.formats import format_number, join_words, to_json
from hpopt.hyperparameters import Scalar
from hpopt.search.space import Range, is_one_of

# The values of other searched parameters with which a parameter is active, by name; all of them must hold.
Condition = Mapping[str, tuple[Scalar, ...]]


def find_conditions(space: Mapping[str, Range]) -> dict[str, Condition]:
    """Return the condition of each parameter, that of its parents included; parents come before their children.

    Parents that are fixed are left out: a study file whose fixed values exclude a parameter is refused. Raises
    ValueError if parameters depend on each other.
    """
    found: dict[str, Condition] = {}

    def resolve(name: str, children: tuple[str, ...]) -> Condition:
        if name in children:
            cycle = " on ".join((*children[children.index(name) :], name)).replace(" on ", " depends on ", 1)
            raise ValueError(f"conditions without a beginning: {cycle}")
        if name not in found:
            merged = {parent: values for parent, values in space[name].when.items() if parent in space}
            for parent in tuple(merged):
                for other, values in resolve(parent, (*children, name)).items():
                    merged[other] = tuple(value for value in merged.get(other, values) if is_one_of(value, values))
            found[name] = merged
        return found[name]

    # A parameter has the condition of its parents and that on them.
    return {name: found[name] for name in sorted(space, key=lambda name: len(resolve(name, ())))}


def is_active(condition: Condition, params: Mapping[str, Any]) -> bool:
    """Return whether params meet a condition; a parent that they lack meets none."""
    return all(name in params and is_one_of(params[name], values) for name, values in condition.items())


def active_params(space: Mapping[str, Range], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params of a space without those that are inactive."""
    conditions = find_conditions(space)
    return {name: params[name] for name in space if name in params and is_active(conditions[name], params)}


def find_missing(space: Mapping[str, Range], params: Mapping[str, Any]) -> list[str]:
    """Return the names of the parameters that params lack, without those that are inactive whatever the others are."""
    conditions = find_conditions(space)
    return [
        name
        for name in space
        if name not in params
        and all(is_one_of(params[parent], values) for parent, values in conditions[name].items() if parent in params)
    ]


def extreme_params(space: Mapping[str, Range], which: int) -> dict[str, Scalar]:
    """Return the first (0) or last (-1) value of each range, without the parameters that are inactive then."""
    return active_params(space, {name: range_.extremes()[which] for name, range_ in space.items()})


def corners(space: Mapping[str, Range]) -> Iterator[dict[str, Scalar]]:
    """Yield params at the first and the last value of each range, with each condition met in some of them."""
    conditions = find_conditions(space)
    for which in (0, -1):
        extremes = {name: range_.extremes()[which] for name, range_ in space.items()}
        for condition in conditions.values():
            yield active_params(space, extremes | {name: values[which] for name, values in condition.items()})


def describe_condition(condition: Condition) -> str:
    """Return a condition in words, such as `optimizer = muon or sgd and nesterov = True`."""
    return join_words([f"{name} = {_join_or(values)}" for name, values in condition.items()])


def condition_to_toml(condition: Condition) -> str:
    """Return a condition as `when` of a study file."""
    values = {name: to_json(values if len(values) > 1 else values[0]) for name, values in condition.items()}
    return f"when = {{ {', '.join(f'{name} = {value}' for name, value in values.items())} }}"


def _join_or(values: Iterable[Scalar]) -> str:
    return " or ".join(format_number(value) for value in values)
