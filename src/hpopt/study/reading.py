"""Read a study file, or raise an error of one line with the key, the value and the nearest valid one."""

import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hpopt.errors import ConfigError, StudyFileError, did_you_mean
from hpopt.hyperparameters import TYPE_NAMES, not_one_of
from hpopt.search.space import Categorical, Float, Int
from hpopt.study.checks import check_sources, check_study
from hpopt.study.file import Enqueued, StudyFile

# The messages of pydantic's errors, by error type.
_MESSAGES = {
    "missing": "missing",
    "too_short": "empty",
    "value_error": "{error}",
    "finite_number": "{value!r} is not a finite number",
    "greater_than": "{value!r} is not above {gt:g}",
    "greater_than_equal": "{value!r} is below {ge}",
    "less_than_equal": "{value!r} is above {le}",
    "string_too_long": "{value!r} is longer than {max_length} characters",
    "string_pattern_mismatch": "{value!r} is not a name of letters, digits, '.', '_' and '-', a letter or digit first",
    "int_type": f"{{value!r}} is not {TYPE_NAMES[int]}",
    "float_type": f"{{value!r}} is not {TYPE_NAMES[float]}",
    "string_type": f"{{value!r}} is not {TYPE_NAMES[str]}",
    "bool_type": f"{{value!r}} is not {TYPE_NAMES[bool]}",
    "tuple_type": "{value!r} is not a list",
    "dict_type": "{value!r} is not a table",
    "model_type": "{value!r} is not a table",
}


# A word of Python, JSON or YAML where a value of TOML is expected.
_NONE = re.compile(r"[=\[,]\s*(none|null|nil)\s*[],}\n]", re.IGNORECASE)


@dataclass(frozen=True)
class StudySource:
    """A valid study file with its text; `name` begins the messages about it."""

    text: str
    file: StudyFile
    name: str


def read_study_file(path: Path) -> StudySource:
    """Read a study file and check it completely, the objective and its data included. Raises StudyFileError."""
    try:
        # utf-8-sig, because editors on Windows write a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        siblings = [sibling.name for sibling in path.parent.glob("*.toml")]
        raise StudyFileError(f"{path}: no such file{did_you_mean(path.name, siblings)}") from error
    except OSError as error:
        raise StudyFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StudyFileError(f"{path}: not UTF-8 (at byte {error.start})") from error
    source = parse_study_file(text, str(path))
    try:
        check_sources(source.file)
    except ConfigError as error:
        raise StudyFileError(f"{path}: {error}") from error
    return source


def parse_study_file(text: str, name: str) -> StudySource:
    """Parse the text of a study file and check it against its objective, which is imported. Raises StudyFileError."""
    file = parse_stored(text, name)
    check_objective(file, name)
    return StudySource(text, file, name)


def parse_stored(text: str, name: str) -> StudyFile:
    """Parse the text of a study file without importing its objective. Raises StudyFileError."""
    try:
        return StudyFile.model_validate(tomllib.loads(text))
    except ValidationError as error:
        # A misspelled key is also missing: the unknown one is to be corrected.
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        message = _translate(problems[0], StudyFile)
    except ValueError as error:
        message = f"not TOML: {error}{_about_none(text)}"
    raise StudyFileError(" ".join(f"{name}: {message}".splitlines()))


def _about_none(text: str) -> str:
    """Return how a missing value is written if a text has one of another language, or an empty string."""
    found = _NONE.search(text)
    return f'; TOML has no {found[1]}: write "{found[1]}", and read it in the objective' if found else ""


def check_objective(file: StudyFile, name: str) -> None:
    """Check a study file against its objective, which is imported. Raises StudyFileError."""
    try:
        check_study(file)
    except ConfigError as error:
        raise StudyFileError(" ".join(f"{name}: {error}".splitlines())) from error


def _translate(error: Any, root: type[BaseModel]) -> str:  # noqa: ANN401 - pydantic_core.ErrorDetails, a TypedDict of Any.
    """Return the message of one of pydantic's errors: the key, and what is wrong with its value."""
    loc = list(error["loc"])
    problem = _problem(error, _model_at(loc, root).model_fields)
    if loc[0] == "search_space" and len(loc) > 2:  # noqa: PLR2004 - the section, the parameter, and pydantic's tag.
        del loc[2]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return f"{key.removeprefix('.')}: {problem}"


def _model_at(loc: list[int | str], root: type[BaseModel]) -> type[BaseModel]:
    """Return the model in which the last part of loc is a key."""
    if loc[0] == "search_space" and len(loc) > 2:  # noqa: PLR2004 - as in _translate.
        ranges: dict[str, type[BaseModel]] = {"float": Float, "int": Int, "categorical": Categorical}
        return ranges[str(loc[2])]
    if loc[0] == "enqueue" and len(loc) > 2:  # noqa: PLR2004 - the section, the entry, and its key.
        return Enqueued
    section = root.model_fields[str(loc[0])].annotation if len(loc) > 1 else root
    return section if isinstance(section, type) and issubclass(section, BaseModel) else root


def _problem(error: Any, fields: Mapping[str, Any]) -> str:  # noqa: ANN401 - as in _translate.
    value, loc, kind = error["input"], error["loc"], error["type"]
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(loc[-1]), fields)}"
    if kind in {"enum", "literal_error"}:
        annotation = fields[loc[-1]].annotation
        return not_one_of(value, tuple(annotation) if kind == "enum" else typing.get_args(annotation))
    if kind == "union_tag_invalid":
        return f"type {not_one_of(value['type'], ('float', 'int', 'categorical'))}"
    if kind == "model_type" and loc[0] == "search_space":
        return f"{value!r} is not a range; write {{ low = ..., high = ... }} or {{ choices = [...] }}"
    if kind == "tuple_type" and loc[0] == "enqueue":
        return "not a list; write [[enqueue]]"
    return _MESSAGES.get(kind, "{value!r} is not a valid value").format(value=value, **error.get("ctx", {}))
