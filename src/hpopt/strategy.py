"""Owns how a study moves through its space: sampler and pruner. Leaves what the space is to search_space.py.

The algorithms are Optuna's.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from hpopt.hyperparameters import Scalar
from hpopt.search_space import Categorical, Int, Range

Space = Mapping[str, Range]


class SeededSampler(BaseSampler):
    """Makes the sampler of each trial from (seed, trial number), so that parallel workers never repeat each other."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._sampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the trial's own sampler; Optuna calls this before anything is sampled."""
        state = np.random.SeedSequence([self._seed, trial.number]).generate_state(1)
        self._sampler = self._make(int(state[0]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """Give what is sampled together."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        """Sample what is sampled together."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 - Optuna's signature.
        """Sample one parameter alone."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Let the sampler see the result."""
        self._sampler.after_trial(study, trial, state, values)


def build_sampler(name: str, *, seed: int, n_startup_trials: int) -> BaseSampler:
    """Make the sampler of a study; a grid needs none, because its points are enqueued."""
    if name == "tpe":
        return SeededSampler(lambda s: TPESampler(n_startup_trials=n_startup_trials, seed=s), seed)
    return SeededSampler(lambda s: RandomSampler(seed=s), seed)


def build_pruner(name: str, *, rungs: Sequence[int], reduction_factor: int) -> BasePruner:
    """Make the pruner of a study; `rungs` are the optimizer steps at which it compares, none where it never does."""
    if name == "asha" and rungs:
        return SuccessiveHalvingPruner(min_resource=rungs[0], reduction_factor=reduction_factor)
    if name == "median" and rungs:
        return MedianPruner(n_warmup_steps=rungs[0])
    return NopPruner()


def suggest(trial: Trial, space: Space) -> None:
    """Sample every parameter of the space into `trial.params`; one that the trial already has keeps its value."""
    for name, parameter in space.items():
        if isinstance(parameter, Categorical):
            trial.suggest_categorical(name, parameter.choices)
        elif isinstance(parameter, Int):
            trial.suggest_int(name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
        else:
            trial.suggest_float(name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)


def grid_points(space: Space) -> list[dict[str, Scalar]]:
    """Give every combination of the values of a space of choices, integers and stepped floats."""
    axes = [[(name, value) for value in _values(parameter)] for name, parameter in space.items()]
    return [dict(point) for point in product(*axes)]


def _values(parameter: Range) -> list[Scalar]:
    if isinstance(parameter, Categorical):
        return list(parameter.choices)
    if isinstance(parameter, Int):
        return list(parameter.values())
    step = parameter.step or (parameter.high - parameter.low)
    n_steps = int((parameter.high - parameter.low) / step + 1e-9)
    return [parameter.low + i * step for i in range(n_steps + 1)]
