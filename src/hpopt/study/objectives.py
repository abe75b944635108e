"""Import an objective, and build its config from typed values."""

import importlib
import importlib.util
import inspect
import os
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from hpopt.errors import ConfigError, did_you_mean
from hpopt.formats import printable
from hpopt.hyperparameters import TYPE_NAMES, check_type, check_value
from hpopt.training.config import PRETRAIN_METRICS, PretrainConfig

# A longer import is announced, since nothing else is printed meanwhile.
SLOW_IMPORT_S = 3.0

# The objectives that come with hpopt: what each takes, and what it reports.
OBJECTIVES: dict[str, tuple[type[Any], tuple[str, ...]]] = {"pretrain": (PretrainConfig, PRETRAIN_METRICS)}


def config_class(objective: str) -> type[Any]:
    """Return the frozen dataclass that an objective takes. Raises ConfigError with the key `objective`.

    For `package.module:function` it is the annotation of the function's first parameter. It needs a field `seed`,
    since a trial is a configuration and a seed.
    """
    if objective in OBJECTIVES:
        return OBJECTIVES[objective][0]
    function = import_function(objective)
    try:
        annotations = inspect.get_annotations(function, eval_str=True)
    except NameError as error:
        raise ConfigError("objective", f"{objective}: an annotation cannot be resolved: {error}") from error
    config = annotations.get(next(iter(inspect.signature(function).parameters), ""))
    # Without "frozen" a training function could change the config that is recorded for its trial.
    if not (isinstance(config, type) and is_dataclass(config) and config.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise ConfigError("objective", f"{objective}: its first parameter is not annotated with a frozen dataclass")
    if "seed" not in field_types(config):
        problem = f"{config.__name__} has no field seed; a trial is a configuration and a seed"
        raise ConfigError("objective", f"{objective}: {problem}")
    return config


def import_function(objective: str) -> Callable[..., Any]:
    """Import the function of `package.module:function`. Raises ConfigError with the key `objective`.

    What the import prints goes to standard error, so that standard output has the answer of a command only; so does a
    line where it takes longer than SLOW_IMPORT_S. A module of the current folder is preferred to an installed one of
    the same name.
    """
    module_name, _, function_name = objective.partition(":")
    if not module_name or not function_name:
        problem = f"'{objective}' is neither {', '.join(OBJECTIVES)} nor package.module:function"
        raise ConfigError("objective", problem + did_you_mean(objective, OBJECTIVES))
    try:
        with _announced(module_name), _as_a_script(module_name), redirect_stdout(sys.stderr):
            _import_from_here(module_name.partition(".")[0])
            module = importlib.import_module(module_name)
    # The code of users can raise anything, and a script calls sys.exit.
    except (Exception, SystemExit) as error:
        raise ConfigError("objective", f"cannot import {module_name}: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not inspect.isfunction(function):
        functions = [name for name, _ in inspect.getmembers(module, inspect.isfunction)]
        problem = f"{module_name} has no function {function_name}{did_you_mean(function_name, functions)}"
        raise ConfigError("objective", problem)
    return function


def _import_from_here(package: str) -> None:
    """Import a module or package of the current folder, if there is one, although the folder is last in sys.path."""
    spec = None if package in sys.modules else PathFinder.find_spec(package, [str(Path.cwd())])
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules[package] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[package]
            raise


@contextmanager
def _announced(module_name: str) -> Iterator[None]:
    """Print a line on standard error while an import takes longer than SLOW_IMPORT_S."""
    line = f"hpopt: the import of {printable(module_name)} is still running"
    timer = threading.Timer(SLOW_IMPORT_S, partial(print, line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _as_a_script(module_name: str) -> Iterator[None]:
    """Run an import with a command line without arguments, and restore what it changes in the process.

    A script can parse the arguments, change the working folder and handle signals when it is imported.
    """
    folder, arguments = Path.cwd(), list(sys.argv)
    in_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    sys.argv[:] = [module_name]
    try:
        yield
    finally:
        os.chdir(folder)
        sys.argv[:] = arguments
        for number, handler in handlers.items():
            if in_main_thread and handler is not None:
                signal.signal(number, handler)


def build_config(objective: str, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the objective's.
    """Return an objective's config. Raises ConfigError for a value that is missing or of another type."""
    config = config_class(objective)
    for f in fields(config):
        if f.init and f.default is MISSING and f.default_factory is MISSING and f.name not in values:
            raise ConfigError(f.name, f"missing; {config.__name__} has no default for it")
    return config(**{name: in_type(config, name, value) for name, value in values.items()})


def in_type(config: type[Any], name: str, value: object) -> object:
    """Return a value in the type of a config's field. Raises ConfigError."""
    if config is PretrainConfig:
        return check_value(name, value)
    expected = field_types(config)[name]
    return check_type(name, value, expected) if expected in TYPE_NAMES else value


def field_types(config: type[Any]) -> dict[str, Any]:
    """Return the types of the fields of a config."""
    try:
        hints = typing.get_type_hints(config)
    except NameError as error:
        raise ConfigError("objective", f"an annotation of {config.__name__} cannot be resolved: {error}") from error
    return {f.name: hints[f.name] for f in fields(config) if f.init}
