"""Check the arms of a comparison: their names, their values, and what a comparison excludes."""

from collections.abc import Iterator, Mapping
from typing import Any

from hpopt.errors import ConfigError, did_you_mean
from hpopt.study.file import NAME_PATTERN, StudyFile
from hpopt.study.objectives import config_class, field_types, in_type
from hpopt.study.plan import defaults
from hpopt.training.config import PREPARED_BY

# Parameters that choose the text: runs that differ in one of them are evaluated on different texts.
DATA_PARAMETERS = ("split", *PREPARED_BY)
# Names of the studies that follow a study.
_RESERVED = ("confirm", "compare", "wider")


def check_arms(study: StudyFile) -> None:
    """Raise ConfigError with the key of the first problem of a comparison, or of a section that only it can have."""
    if not study.arms:
        for section in ("arms", "compare"):
            if section in study.model_fields_set:
                raise ConfigError(section, "nothing to compare; write at least two sections [arms.NAME]")
        return
    _check_sections(study)
    if len(study.arms) == 1:
        raise ConfigError(f"arms.{next(iter(study.arms))}", "the only arm; a comparison needs at least two")
    for arm, values in study.arms.items():
        _check_name(arm)
        for name, value in values.items():
            _check_value(study, f"arms.{arm}.{name}", name, value)
        _check_config(study, arm)
    _check_seeds(study)


def data_by_arm(study: StudyFile, default_values: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return what chooses the text of each arm; arms with equal ones can be compared by value."""
    known = {**default_values, **study.fixed}
    return {arm: tuple({**known, **values}.get(name) for name in DATA_PARAMETERS) for arm, values in study.arms.items()}


def equal_arms(study: StudyFile) -> Iterator[tuple[str, str]]:
    """Yield the pairs of arms that resolve to one config, the first of them before the other."""
    first: dict[str, str] = {}
    for arm in study.arms:
        config = repr(study.config({}, arm=arm))
        if config in first:
            yield first[config], arm
        first.setdefault(config, arm)


def _check_sections(study: StudyFile) -> None:
    """Refuse the sections that a comparison of arms without a search space has no use for."""
    given = study.model_fields_set
    excluded = {
        "search_space": "not supported yet together with [arms]; give each parameter one value in each arm",
        "confirm": "not with [arms], whose runs are replicates already; raise seeds",
        "enqueue": "not with [arms], which say what runs",
        "sampler": "not with [arms], which leave nothing to sample",
    }
    for section, problem in excluded.items():
        if section in given:
            raise ConfigError(section, problem)
    if study.pruner.name != "none":
        raise ConfigError("pruner.name", f'{study.pruner.name!r} would end runs that are compared; write "none"')
    if study.budget.target is not None:
        raise ConfigError("budget.target", "it ends a search; a comparison runs all its seeds")


def _check_name(arm: str) -> None:
    if not NAME_PATTERN.fullmatch(arm):
        problem = f"{arm!r} is not a name of letters, digits, '.', '_' and '-', a letter or digit first"
        raise ConfigError("arms", problem)
    if arm in _RESERVED or arm.isdigit():
        raise ConfigError(f"arms.{arm}", f"an arm is not called {', '.join(_RESERVED)} or a number")


def _check_value(study: StudyFile, key: str, name: str, value: object) -> None:
    config = config_class(study.objective)
    taken = field_types(config)
    if name == "seed":
        raise ConfigError(key, "the seeds are the same for all arms; set seeds")
    if name not in taken:
        raise ConfigError(key, f"{study.objective} does not take it{did_you_mean(name, taken)}")
    if isinstance(value, dict):
        raise ConfigError(key, "a range is not supported yet in an arm; give one value")
    try:
        in_type(config, name, value)
    except ConfigError as error:
        raise ConfigError(key, error.problem) from error


def _check_config(study: StudyFile, arm: str) -> None:
    try:
        study.config({}, arm=arm)
    except ConfigError as error:
        section = f"arms.{arm}" if error.key in study.arms[arm] or error.key not in study.fixed else "fixed"
        raise ConfigError(f"{section}.{error.key}", error.problem) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"arms.{arm}", str(error)) from error


def _check_seeds(study: StudyFile) -> None:
    baseline, *others = data_by_arm(study, defaults(study)).values()
    if study.seeds == 1 and baseline in others:
        raise ConfigError("seeds", "1 run of each arm says nothing about the noise; write seeds = 3 or more")
