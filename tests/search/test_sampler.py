"""The sampler samples what stock Optuna samples, and no two trials of a study share a seed."""

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.trial import TrialState, create_trial

from hpopt.search import tpe
from hpopt.search.design import grid_points
from hpopt.search.sampler import Draw, propose
from hpopt.search.space import Categorical, Float, Int
from hpopt.search.tpe import ColumnTPESampler, Observations, log_density

SPACE = {
    "learning_rate": FloatDistribution(1e-3, 0.3, log=True),
    "momentum": FloatDistribution(0.8, 0.99),
    "ns_steps": IntDistribution(1, 9),
    "optimizer": CategoricalDistribution(("muon", "adamw")),
    "fixed": IntDistribution(3, 3),
}


def stock_study(n_trials, direction, seed):
    """Return a study with trials of every kind with random params and values, ties among them, and their kinds."""
    rng = np.random.default_rng(seed)
    study = optuna.create_study(direction=direction)
    kinds = rng.choice([tpe.COMPLETE, tpe.PRUNED, tpe.INFEASIBLE, tpe.RUNNING], size=n_trials, p=[0.4, 0.4, 0.1, 0.1])
    for kind in kinds:
        params = {
            "learning_rate": float(10 ** rng.uniform(-3, -0.6)),
            "momentum": float(rng.uniform(0.8, 0.99)),
            "ns_steps": int(rng.integers(1, 10)),
            "optimizer": str(rng.choice(["muon", "adamw"])),
            "fixed": 3,
        }
        value = float(np.round(rng.normal(), 1))
        reports = {10: value, 30: math.nan if rng.random() < 0.1 else value} if rng.random() < 0.9 else {}
        study.add_trial(
            create_trial(
                state={tpe.COMPLETE: TrialState.COMPLETE, tpe.RUNNING: TrialState.RUNNING}.get(kind, TrialState.PRUNED),
                value=value if kind == tpe.COMPLETE else None,
                params=params,
                distributions=SPACE,
                system_attrs={"constraints:diverged": 1.0} if kind == tpe.INFEASIBLE else {},
                intermediate_values=reports,
            )
        )
    return study, kinds


def columns_of(study, kinds):
    """Return the trials of a study as columns."""
    trials = study.get_trials(deepcopy=False)
    sign = 1.0 if study.direction.name == "MINIMIZE" else -1.0

    def score(trial, kind):
        if kind == tpe.INFEASIBLE:
            return 1.0
        value = trial.value if kind == tpe.COMPLETE else trial.intermediate_values.get(trial.last_step, 0.0)
        return math.inf if math.isnan(value) else sign * value

    return Observations(
        values={n: np.array([d.to_internal_repr(t.params[n]) for t in trials], float) for n, d in SPACE.items()},
        kind=np.array(kinds, dtype=np.int8),
        step=np.array([-1 if t.last_step is None else t.last_step for t in trials]),
        score=np.array([score(t, k) for t, k in zip(trials, kinds, strict=True)]),
    )


def sampled_at_random(space, n, seed):
    """Return n values of each parameter as Optuna stores them."""
    sampler = optuna.samplers.RandomSampler(seed=seed)
    return {
        name: np.array(
            [
                distribution.to_internal_repr(sampler.sample_independent(None, None, name, distribution))
                for _ in range(n)
            ],
            float,
        )
        for name, distribution in space.items()
    }


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("n_trials", [0, 5, 12, 60, 400])
def test_tpe_over_columns_proposes_the_params_of_optunas_tpe_to_the_bit(direction, n_trials):
    study, kinds = stock_study(n_trials, direction, seed=n_trials)
    observations = columns_of(study, kinds)
    for number in range(5):
        draw = Draw(algorithm="tpe", n_startup_trials=10, seed=0, number=number)
        seed = int(np.random.SeedSequence([0, number]).generate_state(1)[0])
        study.sampler = TPESampler(n_startup_trials=10, seed=seed)
        stock = study.ask(SPACE)
        assert propose(draw, SPACE, observations, {}) == stock.params
        # The next proposal ignores failed trials.
        study.tell(stock, state=TrialState.FAIL)


@pytest.mark.parametrize("n_trials", [0, 1, 30, 2000])
def test_densities_are_those_of_optuna_in_every_kind_of_range(n_trials):
    """In tails, at ties, with steps and logarithms: an error in one density would choose another candidate."""
    space = {
        "adam_eps": FloatDistribution(1e-12, 1e-3, log=True),
        "batch_size": IntDistribution(1, 4096, log=True),
        "dropout": FloatDistribution(0.0, 0.5, step=0.1),
        "max_steps": IntDistribution(100, 90000, step=100),
        "momentum": FloatDistribution(0.8, 0.99),
        "optimizer": CategoricalDistribution(("muon", "adamw", "sgd")),
    }
    values, candidates = sampled_at_random(space, n_trials, seed=0), sampled_at_random(space, 24, seed=1)
    estimator = _ParzenEstimator(values, space, ColumnTPESampler()._parzen_estimator_parameters)
    ours = log_density(estimator._mixture_distribution, np.column_stack(list(candidates.values())))
    np.testing.assert_allclose(ours, estimator.log_pdf(candidates), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_failed", [3, 30])
def test_tpe_avoids_a_region_in_which_trials_fail(n_failed):
    """Optuna's own sampler, which does not see them, proposes it as often as any other."""
    space = {"batch": CategoricalDistribution((16, 32, 64, 128))}
    kinds = [tpe.COMPLETE] * 4 + [tpe.FAILED] * n_failed
    observations = Observations(
        values={"batch": np.array([0, 1, 0, 1] + [2 + k % 2 for k in range(n_failed)], float)},
        kind=np.array(kinds, np.int8),
        step=np.full(len(kinds), -1),
        # The larger the batch that fits, the better.
        score=np.array([2.0, 1.0, 2.0, 1.0] + [0.0] * n_failed),
    )
    draws = [
        propose(Draw(algorithm="tpe", n_startup_trials=5, seed=0, number=k), space, observations, {}) for k in range(20)
    ]
    assert {draw["batch"] for draw in draws} <= {16, 32}


def test_given_params_are_kept_and_the_others_are_sampled():
    study, kinds = stock_study(40, "minimize", seed=1)
    draw = Draw(algorithm="tpe", n_startup_trials=10, seed=0, number=3)
    params = propose(draw, SPACE, columns_of(study, kinds), {"momentum": 0.9})
    assert params["momentum"] == 0.9
    assert params.keys() == SPACE.keys()
    assert all(SPACE[name]._contains(SPACE[name].to_internal_repr(value)) for name, value in params.items())


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_no_two_trials_of_a_study_have_the_same_params(algorithm):
    """Stock samplers with one seed start every worker with the same trial."""
    observations = columns_of(*stock_study(0, "minimize", seed=0))
    momenta = {
        propose(Draw(algorithm=algorithm, n_startup_trials=10, seed=0, number=k), SPACE, observations, {})["momentum"]
        for k in range(50)
    }
    assert len(momenta) == 50


def test_a_parameter_with_one_value_has_that_value():
    draw = Draw(algorithm="random", n_startup_trials=10, seed=0, number=0)
    space = {"fixed": IntDistribution(3, 3), "choice": CategoricalDistribution(("muon",))}
    assert propose(draw, space, columns_of(*stock_study(0, "minimize", seed=0)), {}) == {"fixed": 3, "choice": "muon"}


def test_a_grid_has_every_combination_of_the_values():
    """0.0 + 3 * 0.1 is above 0.3 in binary arithmetic, outside of the range."""
    space = {
        "n": Int(low=1, high=3, step=2),
        "x": Float(low=0.0, high=0.3, step=0.1),
        "optimizer": Categorical(choices=("muon", "adamw")),
    }
    points = list(grid_points(space))
    assert len(points) == len({tuple(point.items()) for point in points}) == 2 * 4 * 2
    assert points[0] == {"n": 1, "x": 0.0, "optimizer": "muon"}
    assert points[-1] == {"n": 3, "x": 0.3, "optimizer": "adamw"}
    assert all(space[name].contains(value) for point in points for name, value in point.items())


def test_failed_trials_add_none_to_the_good_ones():
    """Optuna takes one in ten of the trials that it ranks."""
    n_failed = 40
    kind = np.array([tpe.COMPLETE] * 10 + [tpe.FAILED] * n_failed, np.int8)
    score = np.array([5.0, 4.0, 1.0, *[3.0] * 7, *[0.0] * n_failed])
    good, rest = tpe._split(Observations(values={}, kind=kind, step=np.full(len(kind), -1), score=score))
    assert (list(good), len(rest)) == ([2], 49)


def draws_beside_failures(n_complete, n_failed, scores):
    """Return which of two choices TPE samples after trials of both: complete ones and failed ones."""
    space = {"batch": CategoricalDistribution(("small", "large"))}
    choices = [0] * n_complete[0] + [1] * n_complete[1] + [0] * n_failed[0] + [1] * n_failed[1]
    kinds = [tpe.COMPLETE] * sum(n_complete) + [tpe.FAILED] * sum(n_failed)
    observations = Observations(
        values={"batch": np.array(choices, float)},
        kind=np.array(kinds, np.int8),
        step=np.full(len(kinds), -1),
        score=np.array([scores[choice] for choice in choices]),
    )
    draws = [Draw(algorithm="tpe", n_startup_trials=1, seed=0, number=number) for number in range(40)]
    return {propose(draw, space, observations, {})["batch"] for draw in draws}


@pytest.mark.parametrize(
    ("n_complete", "n_failed", "sampled"),
    [
        ((12, 9), (0, 4), "small"),
        ((12, 10), (0, 3), "large"),
        ((3, 4), (0, 1), "large"),
        ((1, 0), (0, 1), "small"),
    ],
)
def test_a_choice_of_which_more_than_one_in_four_trials_fail_is_left_out(n_complete, n_failed, sampled):
    """The large one is the better one."""
    assert draws_beside_failures(n_complete, n_failed, scores=(2.0, 1.0)) == {sampled}


def test_parameters_with_one_value_need_no_model():
    space = {"fixed": IntDistribution(3, 3), "choice": CategoricalDistribution(("muon",))}
    assert ColumnTPESampler().propose(space, columns_of(*stock_study(20, "minimize", seed=0))) == {}
