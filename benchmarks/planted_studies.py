"""Synthetic studies with known effects, interactions, optima and cliffs, for planted.py and the tests."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import numpy as np

from hpopt.analysis.trials import CurvePoint, Outcome, StudyTable, TrialRow
from hpopt.hyperparameters import Scalar
from hpopt.search.direction import Direction
from hpopt.search.pruner import Rungs
from hpopt.search.sampler import Draw, propose, to_distributions
from hpopt.search.space import Categorical, Float, Int, Range
from hpopt.search.tpe import COMPLETE, PRUNED, Observations

SPACE: Mapping[str, Range] = {
    "learning_rate": Float(low=1e-3, high=0.3, log=True),
    "momentum": Float(low=0.8, high=0.99),
    "warmup_ratio": Float(low=0.0, high=0.2),
    "ns_steps": Int(low=1, high=9),
    "weight_decay": Float(low=1e-4, high=1.0, log=True),
    "schedule": Categorical(choices=("cosine", "linear")),
}
RUNGS = Rungs(fractions=(1 / 9, 1 / 3), share=1 / 3)
N_STEPS = 180
STEPS = tuple(range(10, N_STEPS + 1, 10))
TOKENS_PER_STEP = 4096

Units = Mapping[str, float]
Effect = Callable[[Units, float], float]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The true properties of a synthetic study.

    `effect` is the loss as a function of the params in units of their ranges, and of the fraction of the schedule.
    `noise` is the standard deviation of a run; a fifth of it is drawn for each evaluation, the rest once for the whole
    curve. `diverges` is the probability that a trial diverges. A pruned study stops trials as ASHA does.
    """

    effect: Effect = field(default=lambda _units, _fraction: 0.0)
    noise: float = 0.1
    diverges: Callable[[Units], float] = field(default=lambda _units: 0.0)
    sampler: Literal["random", "tpe"] = "random"
    is_pruned: bool = False
    n_seeds: int = 1


LEARNING_RATE, MOMENTUM = "learning_rate", "momentum"


def _bowl(units: Units, _fraction: float) -> float:
    """Return a loss that is best inside of both ranges; the learning rate has the larger effect."""
    return 1.5 * (units[LEARNING_RATE] - 0.6) ** 2 + 0.6 * (units[MOMENTUM] - 0.4) ** 2


def _ridge(units: Units, fraction: float) -> float:
    """Return the loss of a bowl in which the best momentum falls with the learning rate."""
    return _bowl(units, fraction) + 1.5 * (units[LEARNING_RATE] - 0.5) * (units[MOMENTUM] - 0.5)


def _slope(units: Units, _fraction: float) -> float:
    """Return a loss that is best at the high end of the learning rate."""
    return -0.6 * units[LEARNING_RATE] + 0.6 * (units[MOMENTUM] - 0.4) ** 2


def _drifting_bowl(units: Units, fraction: float) -> float:
    """Return a loss whose best learning rate falls from 0.76 of its range at 1/9 of the schedule to 0.4 at the end."""
    return 1.5 * (units[LEARNING_RATE] - (0.8 - 0.4 * fraction)) ** 2 + 0.6 * (units[MOMENTUM] - 0.4) ** 2


def _cliff(units: Units) -> float:
    """Return 1 beyond four fifths of the learning rate's range."""
    return float(units[LEARNING_RATE] > CLIFF_AT)


CLIFF_AT = 0.8
TRUTHS = {
    "bowl": Truth(effect=_bowl),
    "interaction": Truth(effect=_ridge),
    "edge": Truth(effect=_slope),
    "drift": Truth(effect=_drifting_bowl),
    "cliff": Truth(effect=_bowl, diverges=_cliff),
}


def plant(truth: Truth, n_trials: int, seed: int) -> StudyTable:
    """Simulate a study of `n_trials` configurations, each with the truth's number of seeds."""
    rng = np.random.default_rng(seed)
    rows: list[TrialRow] = []
    for number in range(n_trials):
        params = _propose(truth.sampler, rows, seed, number)
        for _ in range(truth.n_seeds):
            rows.append(run(truth, rng, rows, params))
    return StudyTable(
        name="planted",
        metric="val_loss",
        direction=Direction.MINIMIZE,
        objective="pretrain",
        file_text="",
        search_space=SPACE,
        trials=tuple(rows),
        rungs=RUNGS,
    )


GRID: Mapping[str, Range] = {
    "optimizer": Categorical(choices=("sgd", "adam")),
    "momentum": Categorical(choices=(0.8, 0.9, 0.95)),
    "learning_rate": Categorical(choices=(0.001, 0.01, 0.1, 1.0)),
}
GRID_KINDS = ("applied", "conditional", "ignored", "collapsed", "saturated", "coarse")
N_EVALUATIONS = 10


def plant_grid(kind: str, seed: int) -> StudyTable:
    """Simulate a deterministic training over a grid, which maximizes an accuracy.

    Every param has an effect in the kind `applied`, momentum only with sgd in `conditional`, and nowhere in `ignored`.
    In `collapsed` the two largest learning rates end at chance, in `saturated` the two smallest at 1. In `coarse` the
    accuracy is that of 100 examples.
    """
    rows = []
    for optimizer, momentum, rate in product(*(range_.choices for range_ in GRID.values())):
        is_used = kind != "ignored" and (kind != "conditional" or optimizer == "sgd")
        values = _accuracies(kind, seed, (optimizer, rate, momentum if is_used else None), rate)
        points = enumerate(values, start=1)
        rows.append(
            TrialRow(
                trial=len(rows),
                state="COMPLETE",
                outcome=Outcome.COMPLETE,
                value=values[-1],
                params={"optimizer": optimizer, "momentum": momentum, "learning_rate": rate},
                seed=0,
                curve=tuple(CurvePoint(step=step, tokens=step, seconds=float(step), value=v) for step, v in points),
                metrics={"accuracy": values[-1]},
            )
        )
    return StudyTable(
        name="grid",
        metric="accuracy",
        direction=Direction.MAXIMIZE,
        objective="own:train",
        file_text="",
        search_space=GRID,
        trials=tuple(rows),
    )


def _accuracies(kind: str, seed: int, effective: tuple[object, ...], rate: float) -> list[float]:
    rng = np.random.default_rng([seed, *repr(effective).encode()])
    final = rng.uniform(0.6, 0.9)
    values = final * (1 - np.exp(-np.arange(1, N_EVALUATIONS + 1))) + 0.005 * rng.normal(size=N_EVALUATIONS)
    if kind == "collapsed" and rate >= 0.1:  # noqa: PLR2004 - the third of four rates.
        # After the first evaluation, which is that of the initial weights, one class of 10 is predicted for all.
        values[0], values[1:] = 0.09, 0.1
    if kind == "saturated" and rate < 0.1:  # noqa: PLR2004 - as above.
        values[2:] = 1.0
    return [round(float(value), 2 if kind == "coarse" else 6) for value in values]


def to_units(params: Mapping[str, Scalar]) -> dict[str, float]:
    """Return params in units of their ranges, from 0 to 1 on their scales."""
    return {name: _unit(SPACE[name], value) for name, value in params.items()}


def _unit(range_: Range, value: Scalar) -> float:
    if isinstance(range_, Categorical):
        return range_.choices.index(value) / (len(range_.choices) - 1)
    low, high, number = float(range_.low), float(range_.high), float(value)
    if range_.log:
        low, high, number = math.log(low), math.log(high), math.log(number)
    return (number - low) / (high - low)


def _propose(sampler: str, rows: list[TrialRow], seed: int, number: int) -> dict[str, Scalar]:
    draw = Draw(algorithm=sampler, n_startup_trials=10, seed=seed, number=number)
    return propose(draw, to_distributions(SPACE), _observe(rows), {})


def _observe(rows: list[TrialRow]) -> Observations:
    values = {name: np.array([_internal(SPACE[name], row.params[name]) for row in rows], dtype=float) for name in SPACE}
    return Observations(
        values=values,
        kind=np.array([COMPLETE if row.state == "COMPLETE" else PRUNED for row in rows], dtype=np.int8),
        step=np.array([row.curve[-1].step for row in rows], dtype=np.int64),
        score=np.array([math.inf if row.value is None else row.value for row in rows], dtype=float),
    )


def _internal(range_: Range, value: Scalar) -> float:
    return float(range_.choices.index(value)) if isinstance(range_, Categorical) else float(value)


def run(truth: Truth, rng: np.random.Generator, rows: list[TrialRow], params: Mapping[str, Scalar]) -> TrialRow:
    """Simulate one trial, after the trials `rows`."""
    units = to_units(params)
    run_noise, step_noises, chance = rng.normal(), rng.normal(size=len(STEPS)), rng.random()
    curve: list[CurvePoint] = []
    outcome = Outcome.COMPLETE
    for step, step_noise in zip(STEPS, step_noises, strict=True):
        fraction = step / N_STEPS
        noise = truth.noise * (math.sqrt(0.96) * run_noise + 0.2 * step_noise)
        value = 3.0 + 2.0 * math.exp(-5 * fraction) + truth.effect(units, fraction) + noise
        curve.append(CurvePoint(step=step, tokens=step * TOKENS_PER_STEP, seconds=step * 0.5, value=value))
        if fraction > 1 / 2 and chance < truth.diverges(units):
            outcome = Outcome.DIVERGED
        elif truth.is_pruned and _is_pruned(rows, curve):
            outcome = Outcome.PRUNED
        if outcome is not Outcome.COMPLETE:
            break
    return TrialRow(
        trial=len(rows),
        state=outcome.optuna_state,
        outcome=outcome,
        value=value,
        params=params,
        seed=len(rows),
        curve=tuple(curve),
        metrics={"val_loss": value, "val_perplexity": math.exp(value), "train_val_overlap": 0.01},
    )


def _is_pruned(rows: list[TrialRow], curve: list[CurvePoint]) -> bool:
    rung = RUNGS.reached(curve[-1].step, N_STEPS)
    if rung is None or (len(curve) > 1 and RUNGS.reached(curve[-2].step, N_STEPS) == rung):
        return False
    others = [point for row in rows for point in row.curve if point.step == curve[-1].step]
    n_better = sum((point.value or 0.0) < (curve[-1].value or 0.0) for point in others)
    return RUNGS.should_prune(n_trials=len(others) + 1, n_better=n_better)
