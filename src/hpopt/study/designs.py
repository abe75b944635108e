"""Check what a study file says about its design: which keys go with its sampler, its base and its size."""

from itertools import islice

from hpopt.errors import ConfigError, did_you_mean
from hpopt.formats import format_count
from hpopt.search.space import Categorical, Float, describe_mismatch
from hpopt.study.file import StudyFile
from hpopt.study.objectives import config_class, in_type
from hpopt.study.plan import base_params, defaults, design_points, replicate_seeds

# A larger design is a mistake, and its list of trials would fill the memory.
MAX_TRIALS = 100_000


def check_design(study: StudyFile) -> None:
    """Raise ConfigError for a key that the sampler of a study has no use for, or lacks."""
    if study.is_fixed_design:
        _check_pruner(study)
        _check_points(study)
        _check_seeds(study)
    else:
        _check_search(study)
    if study.sampler.name == "one_at_a_time":
        _check_base(study)
    elif study.sampler.base:
        raise ConfigError("sampler.base", f"{study.sampler.name} varies no base; remove it")


def check_size(study: StudyFile) -> None:
    """Raise ConfigError for a fixed design with too many trials, or with more than its budget has."""
    if not study.is_fixed_design:
        return
    n_points = len(study.arms) or sum(1 for _ in islice(design_points(study), MAX_TRIALS + 1))
    n_trials = n_points * study.seeds
    if n_trials > MAX_TRIALS:
        raise ConfigError("search_space", f"a {study.sampler.name} of more than {MAX_TRIALS:,} trials; give num")
    limit = study.budget.trials
    if limit is not None and limit < n_trials:
        what = "arm" if study.arms else "configuration"
        design = f"{format_count(n_points, what)} with {format_count(study.seeds, 'seed')}"
        raise ConfigError(
            "budget.trials", f"{limit} is below the {n_trials} trials of the design ({design}); remove it, or raise it"
        )


def _check_search(study: StudyFile) -> None:
    limits = ("trials", "gpu_hours", "wall_hours", "tokens")
    if all(getattr(study.budget, name) is None for name in limits):
        raise ConfigError("budget", f"no limit; give at least one of {', '.join(limits)}")
    if study.seeds > 1:
        raise ConfigError("seeds", "a search runs each configuration once; use [confirm] to repeat the best")
    for name, searched in study.search_space.items():
        if not isinstance(searched, Categorical) and searched.num is not None:
            problem = f"{study.sampler.name} samples the whole range; remove num, or write a step"
            raise ConfigError(f"search_space.{name}.num", problem)


def _check_pruner(study: StudyFile) -> None:
    if study.pruner.name == "none":
        return
    if study.sampler.name == "one_at_a_time":
        raise ConfigError("pruner", "one_at_a_time compares complete runs only; remove it")
    if study.seeds > 1:
        raise ConfigError("pruner", "runs with several seeds are compared by their means at the end; remove it")


def _check_points(study: StudyFile) -> None:
    for name, searched in study.search_space.items():
        if isinstance(searched, Float) and searched.step is None and searched.num is None:
            article = "a grid" if study.sampler.name == "grid" else study.sampler.name
            problem = f"{article} needs a list of values; add num or a step, or write {{ choices = [...] }}"
            raise ConfigError(f"search_space.{name}", problem)


def _check_seeds(study: StudyFile) -> None:
    first = study.fixed.get("seed", defaults(study).get("seed"))
    last = replicate_seeds(study, first if isinstance(first, int) else None)[-1]
    if last is not None:
        try:
            in_type(config_class(study.objective), "seed", last)
        except ConfigError as error:
            raise ConfigError("seeds", f"the last seed: {error.problem}") from error


def _check_base(study: StudyFile) -> None:
    space, default_values = study.search_space, defaults(study)
    for name, value in study.sampler.base.items():
        if name not in space:
            raise ConfigError(f"sampler.base.{name}", f"not searched{did_you_mean(name, space)}")
        if not space[name].contains(value):
            raise ConfigError(f"sampler.base.{name}", describe_mismatch(space[name], value))
    missing = next((name for name in space if name not in base_params(study, default_values)), None)
    if missing in default_values:
        why = f"its default {describe_mismatch(space[missing], default_values[missing])}"
        raise ConfigError(f"sampler.base.{missing}", f"missing, and {why}")
    if missing is not None:
        raise ConfigError(f"sampler.base.{missing}", f"missing; {study.objective} has no default for it")
