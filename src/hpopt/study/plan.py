"""Derive the steps, rungs, tokens and operations of a trial from a study file, without torch and optuna."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from math import ceil
from typing import Any, TypeGuard

from hpopt.hyperparameters import Scalar
from hpopt.search.conditions import active_params, corners
from hpopt.search.design import grid_points, one_at_a_time_points
from hpopt.search.pruner import Rungs, build_rungs
from hpopt.search.space import as_sampled
from hpopt.study.file import Pruner, StudyFile
from hpopt.study.objectives import config_class, field_types
from hpopt.training.config import PretrainConfig, flops_per_token

# As num_train_epochs, max_steps and n_iterations; warmup_steps and eval_steps are no lengths.
_LENGTH = re.compile("((max|n|num|total)_)?(train(ing)?_)?(epochs?|steps|iters|iterations|updates|tokens)")
# As warmup_ratio of the schedule, and num_warmup_steps.
_WARMUP = re.compile("(?:(?:lr|n|num)_)?warmup_(ratio|fraction|steps|iters)")


def confirmation_file(file: StudyFile) -> StudyFile:
    """Return the study file of the confirmation of a study: all its trials are enqueued, and run to their end."""
    budget = file.budget.model_copy(update={"trials": None, "target": None})
    return file.model_copy(update={"budget": budget, "pruner": Pruner(name="none"), "enqueue": ()})


def design_points(file: StudyFile) -> Iterator[dict[str, Scalar]]:
    """Yield the params of the configurations of a fixed design."""
    if file.sampler.name == "one_at_a_time":
        return one_at_a_time_points(file.search_space, base_params(file, defaults(file)))
    return grid_points(file.search_space)


def base_params(file: StudyFile, defaults: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the value of each parameter in the configuration that one_at_a_time varies.

    One that has neither a value in the file nor a default in its range is left out.
    """
    base = {**defaults, **file.sampler.base}
    space = file.search_space
    return {
        name: as_sampled(searched, base[name])
        for name, searched in space.items()
        if name in base and searched.contains(base[name])
    }


def not_taken(file: StudyFile) -> list[str]:
    """Return the searched names that the objective does not take; only derived parameters depend on them."""
    taken = field_types(config_class(file.objective))
    return [name for name in file.search_space if name not in taken]


def enqueued_params(file: StudyFile) -> list[dict[str, Scalar]]:
    """Return the params of [[enqueue]]; the base has those that an entry of one_at_a_time leaves out."""
    if file.sampler.name != "one_at_a_time":
        return [entry.params for entry in file.enqueue]
    base = base_params(file, defaults(file))
    return [active_params(file.search_space, {**base, **entry.params}) for entry in file.enqueue]


def replicate_seeds(file: StudyFile, first_seed: int | None) -> Sequence[int | None]:
    """Return the seeds of each configuration of a fixed design, None being the objective's own.

    A design with more seeds than before keeps its trials, and adds those of the further seeds.
    """
    if file.seeds == 1:
        return (None,)
    first_seed = first_seed or 0
    return range(first_seed, first_seed + file.seeds)


def defaults(file: StudyFile) -> dict[str, Any]:
    """Return the objective's defaults; a parameter without one is left out."""
    values = {f.name: f.default for f in fields(config_class(file.objective))}
    return {name: default for name, default in values.items() if default is not MISSING}


def value_of(file: StudyFile, name: str) -> Any:  # noqa: ANN401 - the objective's.
    """Return the constant value of a parameter, or None if it varies, is unknown or has no default.

    Arms that give it different values leave it without one.
    """
    if name in file.search_space or name in file.derived:
        return None
    known = {**defaults(file), **file.fixed}
    first, *others = [{**known, **values}.get(name) for values in file.arms.values()] or [known.get(name)]
    return first if all(other == first for other in others) else None


def count_steps(file: StudyFile) -> int | None:
    """Return the optimizer steps of a complete trial, or None if they differ between trials."""
    if file.objective == "pretrain" and (file.arms or value_of(file, "max_tokens") != 0):
        n_steps = {config.n_steps for config in _extreme_configs(file)}
        return n_steps.pop() if len(n_steps) == 1 else None
    max_steps = value_of(file, "max_steps")
    return max_steps if isinstance(max_steps, int) else None


def place_rungs(file: StudyFile) -> list[int]:
    """Return the steps of the evaluations at which trials are compared: at each rung, the first one from there on.

    Empty without a pruner, if the steps differ between trials, and for an objective without a constant `eval_steps`.
    """
    n_steps, eval_steps = count_steps(file), value_of(file, "eval_steps")
    if n_steps is None or not isinstance(eval_steps, int) or eval_steps < 1:
        return []
    steps = [ceil(step / eval_steps) * eval_steps for step in rungs_of(file).place(n_steps)]
    return [step for step in dict.fromkeys(steps) if step < n_steps]


def searched_lengths(file: StudyFile) -> list[str]:
    """Return the searched parameters that by their names set the length of a trial: steps, epochs or tokens."""
    return [name for name in file.search_space if _LENGTH.fullmatch(name)]


def searched_warmups(file: StudyFile) -> dict[str, float]:
    """Return the longest value of each searched parameter that by its name sets the length of the warmup."""
    names = [name for name in file.search_space if _WARMUP.fullmatch(name)]
    values = {name: [v for v in file.search_space[name].extremes() if _is_number(v)] for name in names}
    return {name: max(numbers) for name, numbers in values.items() if numbers}


def rungs_of(file: StudyFile) -> Rungs:
    """Return the rungs of the pruner, beyond the longest warmup of the search space."""
    pruner, longest = file.pruner, {"fraction": 0.0, "steps": 0.0}
    for name, value in searched_warmups(file).items():
        unit = "steps" if name.endswith(("steps", "iters")) else "fraction"
        longest[unit] = max(longest[unit], value)
    return build_rungs(
        pruner.name,
        min_fraction=pruner.min_fraction,
        reduction_factor=pruner.reduction_factor,
        warmup_fraction=min(longest["fraction"], 1.0),
        warmup_steps=longest["steps"],
    )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def estimate_trial(file: StudyFile) -> tuple[int, float] | None:
    """Return the tokens and floating-point operations of the largest trial, None for an objective of the user's."""
    if file.objective != "pretrain":
        return None
    costs = [(config.tokens, flops_per_token(config) * config.tokens) for config in _extreme_configs(file)]
    return max(costs, key=lambda cost: cost[1])


def count_runs(file: StudyFile) -> int | None:
    """Return the number of trials of a study and its confirmation, or None if only hours or tokens limit them."""
    n_trials = file.budget.trials
    if file.is_fixed_design:
        n_trials = file.seeds * (len(file.arms) or sum(1 for _ in design_points(file)))
    n_confirming = file.confirm.top * file.confirm.seeds if file.confirm else 0
    return None if n_trials is None else n_trials + n_confirming


def _extreme_configs(file: StudyFile) -> list[PretrainConfig]:
    """Return the configs of the arms, or those at the corners of the search space."""
    if file.arms:
        return [file.config({}, arm=arm) for arm in file.arms]
    return [file.config(params) for params in corners(file.search_space)]
