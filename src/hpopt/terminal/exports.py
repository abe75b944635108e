"""Export parameters and progress for programs: JSON, TOML, YAML, environment variables, arguments."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import tomli_w
import yaml

from hpopt.errors import InputError
from hpopt.findings.finding import Finding
from hpopt.formats import format_count, to_json
from hpopt.hyperparameters import Scalar
from hpopt.storage.progress import Best, Progress


def best_as_json(best: Best, findings: Sequence[Finding]) -> str:
    """Return the row of hpopt.best_params and the findings as JSON."""
    return to_json({**asdict(best), "findings": findings}, indent=2)


def progress_as_json(progress: Progress, findings: Sequence[Finding] | None = None) -> str:
    """Return where a study stands as JSON, with its findings unless they are None."""
    usage = asdict(progress.usage)
    state = {"name": progress.name, "state": usage.pop("state"), "state_reason": usage.pop("state_reason")}
    fields = {**state, "state_since": progress.state_since, **asdict(progress), "usage": usage}
    return to_json(fields if findings is None else {**fields, "findings": findings}, indent=2)


def rows_as_json(names: list[str], rows: list[list[Any]]) -> str:
    """Return the rows of a query as a JSON list of objects. Raises InputError if two columns have one name."""
    repeated = next((name for name, n in Counter(names).items() if n > 1), None)
    if repeated is not None:
        raise InputError(f"{format_count(len(names), 'column')}, two of them called '{repeated}'; name them with AS")
    return to_json([dict(zip(names, row, strict=True)) for row in rows], indent=2)


def _toml(params: Mapping[str, Scalar]) -> str:
    try:
        return tomli_w.dumps(params).rstrip()
    except TypeError as error:
        # A choice of stock Optuna can be null.
        raise InputError(f"TOML cannot have these parameters: {error}; expected --format json") from error


def _yaml(params: Mapping[str, Scalar]) -> str:
    text: str = yaml.safe_dump(dict(params), sort_keys=False, allow_unicode=True)
    return text.rstrip()


def _env(params: Mapping[str, Scalar]) -> str:
    names = {name: name.upper() for name in params}
    for name, variable in names.items():
        if not re.fullmatch("[A-Z_][A-Z0-9_]*", variable) or list(names.values()).count(variable) > 1:
            raise InputError(f"{name!r}: not the name of one environment variable; expected --format json")
    return "\n".join(f"{names[name]}={_shell(value)}" for name, value in params.items())


def _args(params: Mapping[str, Scalar]) -> str:
    return " ".join(f"{shlex.quote(f'--{name}')} {_shell(value)}" for name, value in params.items())


def _shell(value: Scalar) -> str:
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))


# The formats of the best parameters.
PARAMS_AS: dict[str, Callable[[Mapping[str, Scalar]], str]] = {"toml": _toml, "yaml": _yaml, "env": _env, "args": _args}
