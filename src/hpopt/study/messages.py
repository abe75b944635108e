"""Owns the words for what pydantic refuses: one line with the key, the value and the nearest right one."""

import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from hpopt.errors import did_you_mean
from hpopt.hyperparameters import TYPE_NAMES, not_one_of
from hpopt.search.space import Categorical, Float, Int

# What pydantic refuses, by the name that it gives the refusal.
PROBLEMS = {
    "missing": "missing",
    "too_short": "empty",
    "value_error": "{error}",
    "finite_number": "{value!r} is not a finite number",
    "greater_than": "{value!r} is not above {gt:g}",
    "greater_than_equal": "{value!r} is below {ge}",
    "less_than_equal": "{value!r} is above {le}",
    "string_too_long": "{value!r} is longer than {max_length} characters",
    "string_pattern_mismatch": "{value!r} is no name; use letters, digits, '.', '_' and '-', a letter or digit first",
    "int_type": f"{{value!r}} is not {TYPE_NAMES[int]}",
    "float_type": f"{{value!r}} is not {TYPE_NAMES[float]}",
    "string_type": f"{{value!r}} is not {TYPE_NAMES[str]}",
    "bool_type": f"{{value!r}} is not {TYPE_NAMES[bool]}",
    "tuple_type": "{value!r} is not a list",
    "dict_type": "{value!r} is not a table",
    "model_type": "{value!r} is not a table",
}


def translate(error: Any, root: type[BaseModel]) -> str:  # noqa: ANN401 - pydantic_core.ErrorDetails, a TypedDict of Any.
    """Put one of pydantic's errors about a model into our words: the key, and what is wrong with its value."""
    loc = list(error["loc"])
    known = _model_at(loc, root).model_fields
    problem = _problem(error, known)
    if loc[0] == "search_space" and len(loc) > 2:  # noqa: PLR2004 - the section, the parameter, and pydantic's tag.
        del loc[2]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return f"{key.removeprefix('.')}: {problem}"


def _model_at(loc: list[int | str], root: type[BaseModel]) -> type[BaseModel]:
    """Give the model in which the last part of loc is a key."""
    if loc[0] == "search_space" and len(loc) > 2:  # noqa: PLR2004 - as in translate.
        ranges: dict[str, type[BaseModel]] = {"float": Float, "int": Int, "categorical": Categorical}
        return ranges[str(loc[2])]
    section = root.model_fields[str(loc[0])].annotation if len(loc) > 1 else root
    return section if isinstance(section, type) and issubclass(section, BaseModel) else root


def _problem(error: Any, known: Mapping[str, Any]) -> str:  # noqa: ANN401 - as in translate.
    value, loc, kind = error["input"], error["loc"], error["type"]
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(loc[-1]), known)}"
    if kind in {"enum", "literal_error"}:
        annotation = known[loc[-1]].annotation
        return not_one_of(value, tuple(annotation) if kind == "enum" else typing.get_args(annotation))
    if kind == "union_tag_invalid":
        return f"type {not_one_of(value['type'], ('float', 'int', 'categorical'))}"
    if kind == "model_type" and loc[0] == "search_space":
        return f"{value!r} is no range; write {{ low = ..., high = ... }} or {{ choices = [...] }}"
    if kind == "tuple_type" and loc[0] == "enqueue":
        return "not a list; write [[enqueue]]"
    return PROBLEMS.get(kind, "{value!r} is not what belongs here").format(value=value, **error.get("ctx", {}))
