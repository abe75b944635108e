"""Check a study file as a whole: its objective, values, ranges and their combinations."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, combinations, islice, product
from typing import Any

from hpopt.errors import ConfigError, did_you_mean
from hpopt.hyperparameters import Scalar, not_one_of
from hpopt.search.conditions import active_params, find_conditions
from hpopt.search.space import Categorical, Float, Range, describe_mismatch
from hpopt.study.arms import check_arms
from hpopt.study.conditions import check_active, check_conditions, check_used
from hpopt.study.derived import parse_expression
from hpopt.study.designs import check_design, check_size
from hpopt.study.file import StudyFile
from hpopt.study.objectives import OBJECTIVES, build_config, config_class, field_types, in_type
from hpopt.study.plan import enqueued_params
from hpopt.training import sources
from hpopt.training.config import PREPARED_BY, PretrainConfig
from hpopt.training.hub import is_hub_name

# Up to this many values of a range are tried in a config; of a longer range, the two lowest and the highest.
MAX_PROBES = 16
# About 0.2 s of building configs.
MAX_COMBINATIONS = 4096


def check_study(study: StudyFile) -> None:
    """Raise ConfigError with the key of the first problem."""
    taken = field_types(config_class(study.objective))
    _, metrics = OBJECTIVES.get(study.objective, (None, ()))
    if "\0" in study.metric:
        raise ConfigError("metric", f"{study.metric!r} has a NUL, which PostgreSQL does not store")
    if metrics and study.metric not in metrics:
        raise ConfigError("metric", not_one_of(study.metric, metrics))
    _check_derived(study, taken)
    used = _used_by_derived(study)
    for section in ("search_space", "fixed"):
        for name in getattr(study, section):
            if name not in taken and not (section == "search_space" and name in used):
                raise ConfigError(f"{section}.{name}", f"{study.objective} does not take it{did_you_mean(name, taken)}")
    _check_values(study)
    check_arms(study)
    if not study.arms and "search_space" not in study.model_fields_set:
        raise ConfigError("search_space", "missing")
    check_design(study)
    check_conditions(study)
    _check_enqueued(study)
    _check_sampler_and_pruner(study)
    _check_combinations(study)
    check_size(study)


def check_sources(study: StudyFile) -> None:
    """Raise ConfigError with the key of data that is not on this machine.

    For the study file of a user; a stored study can be read on a machine without its data.
    """
    if config_class(study.objective) is not PretrainConfig:
        return
    space = study.search_space
    lows = {name: searched.extremes()[0] for name, searched in space.items()}
    choices = {
        name: searched.choices
        for name, searched in space.items()
        if name in PREPARED_BY and isinstance(searched, Categorical)
    }
    _check_stream(study)
    for arm in study.arms:
        try:
            sources.check_sources(study.config({}, arm=arm))
        except ConfigError as error:
            section = f"arms.{arm}" if error.key in study.arms[arm] else "fixed"
            raise ConfigError(f"{section}.{error.key}", error.problem) from error
    for chosen in product(*choices.values()) if not study.arms else ():
        params = active_params(space, {**lows, **dict(zip(choices, chosen, strict=True))})
        try:
            sources.check_sources(study.config(params))
        except ConfigError as error:
            raise _with_key(study, params, error) from error


def _check_stream(study: StudyFile) -> None:
    """Refuse to search how far a dataset of the Hub is read: trials would be evaluated on different texts."""
    name = "max_train_tokens"
    if name in study.search_space and is_hub_name(str(study.fixed.get("dataset", ""))):
        if study.fixed.get("max_documents") or "max_documents" in study.search_space:
            return
        raise ConfigError(
            f"search_space.{name}",
            "it bounds how far a Hugging Face dataset is read, so that each trial would have another validation text;"
            " set max_documents",
        )


def _check_values(study: StudyFile) -> None:
    for name, value in study.fixed.items():
        _check_one(study.objective, f"fixed.{name}", value)
        if name in study.search_space:
            raise ConfigError(
                f"fixed.{name}", f"{value!r} is both fixed and searched; remove it here or in search_space"
            )
    for name, searched in study.search_space.items():
        key = f"search_space.{name}"
        if name == "seed":
            raise ConfigError(key, "the seed is not searched; a trial is a configuration and a seed")
        taken = field_types(config_class(study.objective))
        if name not in taken:
            continue
        _check_kind(key, searched, taken[name])
        labels = ("choice",) * len(searched.extremes()) if isinstance(searched, Categorical) else ("low", "high")
        for label, value in zip(labels, searched.extremes(), strict=True):
            _check_one(study.objective, key, value, label=f"{label} ")


def _check_derived(study: StudyFile, taken: Mapping[str, object]) -> None:
    """Refuse a derived parameter that has another value too, that is no number, or that depends on an unknown one."""
    sections = {"fixed": study.fixed, "search_space": study.search_space}
    sections |= {f"arms.{arm}": values for arm, values in study.arms.items()}
    known = {name for values in sections.values() for name in values}
    for name, text in study.derived.items():
        key = f"derived.{name}"
        if name not in taken:
            raise ConfigError(key, f"{study.objective} does not take it{did_you_mean(name, taken)}")
        section = next((section for section, values in sections.items() if name in values), None)
        if section is not None:
            raise ConfigError(key, f"also in [{section}]; remove it here or there")
        if name == "seed" or taken[name] not in (int, float):
            raise ConfigError(key, "only a number other than the seed is derived")
        for other in parse_expression(text).names:
            if other not in known:
                raise ConfigError(key, f"'{other}' is not searched, fixed or derived above{did_you_mean(other, known)}")
        known.add(name)


def _used_by_derived(study: StudyFile) -> set[str]:
    return {name for text in study.derived.values() for name in parse_expression(text).names}


def _check_kind(key: str, searched: Range, expected: object) -> None:
    if isinstance(searched, Float) and expected is int:
        raise ConfigError(key, 'takes whole numbers; add type = "int"')
    if not isinstance(searched, Categorical) and expected in (str, bool):
        raise ConfigError(key, "its values have no order; write { choices = [...] }")


def _check_one(objective: str, key: str, value: object, *, label: str = "") -> None:
    try:
        in_type(config_class(objective), key.rpartition(".")[2], value)
    except ConfigError as error:
        raise ConfigError(key, label + error.problem) from error


def check_params(space: Mapping[str, Range], params: Mapping[str, Any]) -> None:
    """Raise ConfigError, with the name as key, for a parameter that is not searched, out of range or inactive."""
    for name, value in params.items():
        if name not in space:
            raise ConfigError(name, f"not searched{did_you_mean(name, space)}")
        if not space[name].contains(value):
            raise ConfigError(name, describe_mismatch(space[name], value))
    check_active(space, params)


def check_enqueued_trial(study: StudyFile, params: Mapping[str, Any]) -> None:
    """Raise ConfigError for params that stock Optuna enqueued a trial with, and that the study does not search.

    A parameter that is fixed in the study file may have its value there.
    """
    for name, value in params.items():
        if name in study.fixed and value != study.fixed[name]:
            raise ConfigError(name, f"enqueued, but {value!r} is not its value in [fixed], {study.fixed[name]!r}")
    try:
        check_params(study.search_space, {name: value for name, value in params.items() if name not in study.fixed})
    except ConfigError as error:
        raise ConfigError(str(error.key), f"enqueued, but {error.problem}") from error


def _check_enqueued(study: StudyFile) -> None:
    taken = field_types(config_class(study.objective))
    for i, (entry, params) in enumerate(zip(study.enqueue, enqueued_params(study), strict=True)):
        for name, value in entry.params.items():
            if name in study.search_space and name in taken:
                _check_one(study.objective, f"enqueue[{i}].{name}", value)
        if entry.seed is not None:
            _check_one(study.objective, f"enqueue[{i}].seed", entry.seed)
        if entry.note is not None and "\0" in entry.note:
            raise ConfigError(f"enqueue[{i}].note", "has a NUL, which PostgreSQL does not store")
        try:
            check_params(study.search_space, {**params, **entry.params})
        except ConfigError as error:
            raise ConfigError(f"enqueue[{i}].{error.key}", error.problem) from error


def _check_sampler_and_pruner(study: StudyFile) -> None:
    varied = {*study.search_space, *study.derived}
    for name in _length_parameters(study) & varied if study.pruner.name != "none" else ():
        problem = f"{study.pruner.name} compares trials at the same fractions of schedules of one length"
        raise ConfigError(_key_of(study, name), f'{problem}; fix {name}, or set pruner.name = "none"')
    for name in study.search_space:
        check_used(study, name)


def _length_parameters(study: StudyFile) -> set[str]:
    """Return the parameters by which trials differ in length: in tokens where max_tokens is given, else in steps."""
    if study.objective in OBJECTIVES and (study.fixed.get("max_tokens") or "max_tokens" in study.search_space):
        return {"max_tokens"}
    return {"max_steps"}


def _check_combinations(study: StudyFile) -> None:
    used = _used_by_derived(study)
    for params in _combinations(study.search_space, used) if not study.arms else ():
        try:
            study.config(params)
        except (ConfigError, TypeError, ValueError) as error:
            raise _with_key(study, params, error) from error


def _combinations(space: Mapping[str, Range], varied: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield params with the integers and choices alone, in pairs, and all at their extremes; the rest at its lowest.

    Other ranges are at their extremes too if they are in `varied`. Inactive params are left out. Extremes alone would
    pass widths from 96 to 384 that 8 heads do not divide.
    """
    lows = {name: searched.extremes()[0] for name, searched in space.items()}
    conditions = find_conditions(space)
    counted = {name: searched for name, searched in space.items() if name in varied or not isinstance(searched, Float)}
    conditional = ({name: lows[name]} for name, condition in conditions.items() if condition)
    alone = ({name: probe} for name, searched in counted.items() for probe in _probes(searched))
    pairs = (
        {a: probe_a, b: probe_b}
        for a, b in combinations(counted, 2)
        for probe_a, probe_b in product(_probes(counted[a]), _probes(counted[b]))
    )
    extremes = product(*(searched.extremes() for searched in counted.values()))
    corners = (dict(zip(counted, corner, strict=True)) for corner in extremes)
    for chosen in islice(chain(conditional, alone, pairs, corners), MAX_COMBINATIONS):
        needed = {parent: values[0] for name in chosen for parent, values in conditions[name].items()}
        yield active_params(space, {**lows, **needed, **chosen})


def _probes(searched: Range) -> Iterable[Scalar]:
    if isinstance(searched, Float):
        return searched.extremes()
    if isinstance(searched, Categorical):
        return searched.choices
    values = searched.points()
    # If the heads divide the two lowest widths, they divide their difference and so all widths.
    return values if len(values) <= MAX_PROBES else (values[0], values[1], values[-1])


def _with_key(study: StudyFile, params: Mapping[str, Any], error: Exception) -> ConfigError:
    """Return the error with the key that causes it: the config's, or one without which there is no error."""
    key = error.key if isinstance(error, ConfigError) else None
    problem = error.problem if isinstance(error, ConfigError) else str(error)
    values = {**study.fixed, **params}
    if key in study.derived:
        used = (name for name in parse_expression(study.derived[key]).names if name in params)
        where = ", ".join(f"{name} = {params[name]!r}" for name in used)
        return ConfigError(f"derived.{key}", problem + (f" with {where}" if where and where not in problem else ""))
    if key in values:
        return ConfigError(_key_of(study, key), problem)
    for name, value in values.items():
        try:
            build_config(study.objective, {other: v for other, v in values.items() if other != name})
        except (ConfigError, TypeError, ValueError):
            continue
        clash = f"{value!r} is not compatible with the default of {key}: " if key else ""
        return ConfigError(_key_of(study, name), clash + problem)
    return ConfigError(f"fixed.{key}" if key else "fixed", problem)


def _key_of(study: StudyFile, name: str) -> str:
    section = "fixed" if name in study.fixed else "derived" if name in study.derived else "search_space"
    return f"{section}.{name}"
