"""Owns the forms in which programs take what hpopt knows: JSON, TOML, YAML, environment, arguments."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from hpopt.findings.finding import Finding
from hpopt.hyperparameters import Scalar
from hpopt.storage.progress import Best, Progress


def best_as_json(best: Best, findings: Sequence[Finding]) -> str:
    """Give the row of hpopt.best_params as JSON, and the warnings about the study."""
    told = {**asdict(best), "findings": [asdict(finding) for finding in findings]}
    return json.dumps(told, indent=2, default=_json_default)


def progress_as_json(progress: Progress, findings: Sequence[Finding] | None = None) -> str:
    """Give where a study stands as JSON, its name and state first, and the warnings about it if they were asked for."""
    books = asdict(progress.books)
    state = {"name": progress.name, "state": books.pop("state"), "state_reason": books.pop("state_reason")}
    state["state_since"] = progress.state_since
    told = {**state, **asdict(progress), "books": books}
    if findings is not None:
        told["findings"] = [asdict(finding) for finding in findings]
    return json.dumps(told, indent=2, default=_json_default)


def rows_as_json(names: list[str], rows: list[list[Any]]) -> str:
    """Give the rows of a query as a JSON list of objects."""
    return json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2, default=_json_default)


def _json_default(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _toml(params: Mapping[str, Scalar]) -> str:
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in params.items())


def _yaml(params: Mapping[str, Scalar]) -> str:
    # YAML 1.1 reads 1e-05 as a string: a mantissa with a point makes it a number.
    def show(value: Scalar) -> str:
        text = json.dumps(value)
        return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text

    return "\n".join(f"{name}: {show(value)}" for name, value in params.items())


def _env(params: Mapping[str, Scalar]) -> str:
    return "\n".join(f"{name.upper()}={_shell(value)}" for name, value in params.items())


def _args(params: Mapping[str, Scalar]) -> str:
    return " ".join(f"--{name} {_shell(value)}" for name, value in params.items())


def _shell(value: Scalar) -> str:
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))


# The forms in which a program takes the best parameters.
PARAMS_AS: dict[str, Callable[[Mapping[str, Scalar]], str]] = {"toml": _toml, "yaml": _yaml, "env": _env, "args": _args}
