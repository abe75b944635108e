"""Sample the params of a trial with Optuna's algorithms."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler

from hpopt.hyperparameters import Scalar
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
    draw: Draw, space: Mapping[str, BaseDistribution], observations: Observations, params: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """Return `params` with all others of the space sampled, as Optuna's ask does."""
    seed = int(np.random.SeedSequence([draw.seed, draw.number]).generate_state(1)[0])
    is_modelled = draw.algorithm == "tpe" and observations.n_finished >= draw.n_startup_trials
    sampled = ColumnTPESampler(seed=seed).propose(space, observations) if is_modelled else {}
    at_random = RandomSampler(seed=seed)

    def choose(name: str, distribution: BaseDistribution) -> Scalar:
        if distribution.single():
            return _only_value(distribution)
        value: Scalar = at_random.sample_independent(_UNUSED, _UNUSED, name, distribution)
        return value

    sampled = {**sampled, **params}
    return {name: sampled[name] if name in sampled else choose(name, space[name]) for name in space}


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


def grid_points(space: Space) -> list[dict[str, Scalar]]:
    """Return every combination of the values of a space of choices, integers and floats with a step."""
    axes = [
        parameter.choices if isinstance(parameter, Categorical) else parameter.values() for parameter in space.values()
    ]
    return [dict(zip(space, point, strict=True)) for point in product(*axes)]
