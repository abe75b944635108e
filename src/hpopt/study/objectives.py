"""Owns what an objective takes: its config class, the types of its fields, and building one.

Leaves which combinations make sense to the config itself.
"""

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from hpopt.errors import ConfigError, did_you_mean
from hpopt.hyperparameters import TYPE_NAMES, check_type, check_value
from hpopt.training.config import PRETRAIN_METRICS, PretrainConfig

# The objectives that come with hpopt: what each takes, and what it reports.
OBJECTIVES: dict[str, tuple[type[Any], tuple[str, ...]]] = {"pretrain": (PretrainConfig, PRETRAIN_METRICS)}


def config_class(objective: str) -> type[Any]:
    """Give the frozen dataclass that an objective takes; raises ConfigError naming `objective`.

    For `package.module:function` it is the annotation of the function's first parameter. It needs a field `seed`,
    since a trial is params and a seed.
    """
    if objective in OBJECTIVES:
        return OBJECTIVES[objective][0]
    function = import_function(objective)
    try:
        annotations = inspect.get_annotations(function, eval_str=True)
    except NameError as error:
        raise ConfigError("objective", f"{objective}: an annotation cannot be resolved: {error}") from error
    found = annotations.get(next(iter(inspect.signature(function).parameters), ""))
    # Without "frozen" a training function could change the config that is on record for its trial.
    if not (isinstance(found, type) and is_dataclass(found) and found.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise ConfigError("objective", f"{objective}: its first parameter is not annotated with a frozen dataclass")
    if "seed" not in field_types(found):
        raise ConfigError("objective", f"{objective}: {found.__name__} has no field seed; a trial is params and a seed")
    return found


def import_function(objective: str) -> Callable[..., Any]:
    """Import the function of `package.module:function`; raises ConfigError naming `objective`."""
    module_name, _, function_name = objective.partition(":")
    if not module_name or not function_name:
        problem = f"'{objective}' is neither {', '.join(OBJECTIVES)} nor package.module:function"
        raise ConfigError("objective", problem + did_you_mean(objective, OBJECTIVES))
    try:
        module = importlib.import_module(module_name)
    # Other people's code runs here and may raise anything.
    except Exception as error:
        raise ConfigError("objective", f"cannot import {module_name}: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not inspect.isfunction(function):
        functions = [name for name, _ in inspect.getmembers(module, inspect.isfunction)]
        problem = f"{module_name} has no function {function_name}{did_you_mean(function_name, functions)}"
        raise ConfigError("objective", problem)
    return function


def build_config(objective: str, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the objective's.
    """Build an objective's config; raises ConfigError for a value that is missing or of another type."""
    config = config_class(objective)
    for f in fields(config):
        if f.init and f.default is MISSING and f.default_factory is MISSING and f.name not in values:
            raise ConfigError(f.name, f"missing; {config.__name__} has no default for it")
    return config(**{name: in_type(config, name, value) for name, value in values.items()})


def in_type(config: type[Any], name: str, value: object) -> object:
    """Give a value in the type of a config's field; raises ConfigError."""
    if config is PretrainConfig:
        return check_value(name, value)
    expected = field_types(config)[name]
    return check_type(name, value, expected) if expected in TYPE_NAMES else value


def field_types(config: type[Any]) -> dict[str, Any]:
    """Give the type of each field that a config takes."""
    try:
        hints = typing.get_type_hints(config)
    except NameError as error:
        raise ConfigError("objective", f"an annotation of {config.__name__} cannot be resolved: {error}") from error
    return {f.name: hints[f.name] for f in fields(config) if f.init}
