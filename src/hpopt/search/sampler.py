"""Sample the params of a trial with Optuna's algorithms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler

from hpopt.hyperparameters import Scalar
from hpopt.search.conditions import Condition, is_active
from hpopt.search.space import Categorical, Int, Range
from hpopt.search.tpe import ColumnTPESampler, Observations

Space = Mapping[str, Range]

# RandomSampler uses neither study nor trial.
_UNUSED: Any = None


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How the params of one trial are sampled: the algorithm, `tpe` or `random`, seeded from (seed, trial number).

    Each trial has a sampler of its own, so that parallel workers never repeat each other. The points of a grid are
    enqueued and not sampled.
    """

    algorithm: str
    n_startup_trials: int
    seed: int
    number: int


def propose(
    draw: Draw,
    space: Mapping[str, BaseDistribution],
    observations: Observations,
    params: Mapping[str, Scalar],
    conditions: Mapping[str, Condition] | None = None,
) -> dict[str, Scalar]:
    """Return `params` with all others that are active sampled, as Optuna's ask does.

    Parameters with the same condition are sampled together, from the trials in which they were active, after those on
    which they depend: the groups of Optuna's TPESampler(group=True), known from the space instead of from its trials.
    """
    seed = int(np.random.SeedSequence([draw.seed, draw.number]).generate_state(1)[0])
    tpe, at_random = ColumnTPESampler(seed=seed), RandomSampler(seed=seed)
    chosen = dict(params)

    def choose(name: str, distribution: BaseDistribution) -> Scalar:
        if distribution.single():
            return _only_value(distribution)
        value: Scalar = at_random.sample_independent(_UNUSED, _UNUSED, name, distribution)
        return value

    for condition, names in _groups(space, conditions or {}):
        if is_active(condition, chosen):
            group = {name: space[name] for name in names}
            seen = observations.of(names) if condition else observations
            is_modelled = draw.algorithm == "tpe" and seen.n_finished >= draw.n_startup_trials
            sampled = tpe.propose(group, seen) if is_modelled else {}
            for name in names:
                if name not in chosen:
                    chosen[name] = sampled[name] if name in sampled else choose(name, space[name])
    return {name: chosen[name] for name in space if name in chosen}


def _groups(
    space: Mapping[str, BaseDistribution], conditions: Mapping[str, Condition]
) -> list[tuple[Condition, list[str]]]:
    """Return the parameters with each condition, in the order of the space, parents before their children."""
    groups: list[tuple[Condition, list[str]]] = []
    for name in sorted(space, key=lambda name: len(conditions.get(name, {}))):
        condition = conditions.get(name, {})
        names = next((names for other, names in groups if other == condition), None)
        if names is None:
            groups.append((condition, [name]))
        else:
            names.append(name)
    return groups


def _only_value(distribution: BaseDistribution) -> Scalar:
    value: Scalar = distribution.to_external_repr(
        0 if isinstance(distribution, CategoricalDistribution) else distribution.low  # type: ignore[attr-defined]
    )
    return value


def to_distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the space as Optuna's distributions."""
    return {name: to_distribution(parameter) for name, parameter in space.items()}


def to_distribution(parameter: Range) -> BaseDistribution:
    """Return a range as Optuna's distribution."""
    if isinstance(parameter, Categorical):
        return CategoricalDistribution(parameter.choices)
    if isinstance(parameter, Int):
        return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
