"""Owns how a study moves through its space. Leaves what the space is to search_space.py, and stopping to rungs.py.

The algorithms are Optuna's.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from hpopt.hyperparameters import Scalar
from hpopt.search_space import Categorical, Int, Range

Space = Mapping[str, Range]


class SpaceTPESampler(TPESampler):
    """Optuna's TPE over a space that is known and never changes: nothing is inferred from the trials."""

    def __init__(self, space: Mapping[str, BaseDistribution], *, n_startup_trials: int, seed: int) -> None:
        super().__init__(n_startup_trials=n_startup_trials, seed=seed)
        self._space = {name: space[name] for name in sorted(space) if not space[name].single()}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Give what is sampled together: all parameters that have more than one value."""
        del study, trial
        return self._space


def build_sampler(
    name: str, space: Mapping[str, BaseDistribution], *, seed: int, number: int, n_startup_trials: int
) -> BaseSampler:
    """Make the sampler of one trial, seeded from (seed, trial number), so that workers never repeat each other.

    A grid needs none, because its points are enqueued.
    """
    state = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if name == "tpe":
        return SpaceTPESampler(space, n_startup_trials=n_startup_trials, seed=state)
    return RandomSampler(seed=state)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Give the space as Optuna's distributions."""
    return {name: _distribution(parameter) for name, parameter in space.items()}


def _distribution(parameter: Range) -> BaseDistribution:
    if isinstance(parameter, Categorical):
        return CategoricalDistribution(parameter.choices)
    if isinstance(parameter, Int):
        return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def grid_points(space: Space) -> list[dict[str, Scalar]]:
    """Give every combination of the values of a space of choices, integers and stepped floats."""
    axes = [[(name, value) for value in _values(parameter)] for name, parameter in space.items()]
    return [dict(point) for point in product(*axes)]


def _values(parameter: Range) -> Sequence[Scalar]:
    if isinstance(parameter, Categorical):
        return parameter.choices
    if isinstance(parameter, Int):
        return parameter.values()
    step = parameter.step or (parameter.high - parameter.low)
    n_steps = int((parameter.high - parameter.low) / step + 1e-9)
    return [parameter.low + i * step for i in range(n_steps + 1)]
