"""Split a study with conditional parameters into tables in which every parameter is active in each trial.

Conditional parameters get models of their own instead of imputed values in one model of all trials: there, a parameter
whose imputed trials are better would seem to have an effect, since its absence tells the value of its parent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hpopt.analysis.axes import is_fixed
from hpopt.analysis.trials import StudyTable
from hpopt.search.conditions import Condition, describe_condition, find_conditions, is_active
from hpopt.search.space import Categorical, Range, is_one_of


@dataclass(frozen=True, kw_only=True)
class Part:
    """The trials that meet a condition; `parameters` are those that have just this condition.

    The search space of the `table` has all parameters that are active in these trials.
    """

    condition: Condition
    parameters: tuple[str, ...]
    table: StudyTable

    @property
    def where(self) -> str:
        """The condition and the number of complete trials in words."""
        return f"{describe_condition(self.condition)}, {len(self.table.complete())} complete trials"


def split_table(table: StudyTable) -> tuple[Part, ...]:
    """Return the part without a condition, which has all trials, and one for each condition."""
    conditions = find_conditions(table.search_space)
    distinct: list[Condition] = [{}]
    for condition in conditions.values():
        if condition not in distinct:
            distinct.append(condition)
    return tuple(_take_part(table, conditions, condition, len(distinct)) for condition in distinct)


def _take_part(table: StudyTable, conditions: Mapping[str, Condition], condition: Condition, n_parts: int) -> Part:
    space = {
        name: _restrict(range_, condition.get(name))
        for name, range_ in table.search_space.items()
        if _implies(condition, conditions[name]) and len(condition.get(name, ())) != 1
    }
    own = tuple(name for name in table.search_space if conditions[name] == condition and not is_fixed(space[name]))
    trials = tuple(row for row in table.trials if is_active(condition, row.params))
    part = replace(table, search_space=space, trials=trials, n_parts=n_parts)
    return Part(condition=condition, parameters=own, table=part)


def _implies(condition: Condition, other: Condition) -> bool:
    """Return whether all params that meet a condition meet another one."""
    return all(
        name in condition and all(is_one_of(value, values) for value in condition[name])
        for name, values in other.items()
    )


def _restrict(range_: Range, values: tuple[object, ...] | None) -> Range:
    return range_ if values is None else Categorical.model_construct(choices=values, when=range_.when)
