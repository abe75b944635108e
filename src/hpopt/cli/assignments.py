"""Owns configurations as they are typed, NAME=VALUE. Leaves what is refused of them to study/checks.py."""

import tomllib
from collections.abc import Sequence

from hpopt.errors import ConfigError, InputError
from hpopt.hyperparameters import Scalar
from hpopt.search.space import Categorical, Float, Range
from hpopt.study.checks import check_study
from hpopt.study.file import StudyFile


def read_assignments(typed: Sequence[str], file: StudyFile) -> dict[str, Scalar]:
    """Read a configuration of a study's space, in the order in which it was typed.

    Raises InputError for what an [[enqueue]] of its file would be refused for, in the same words.
    """
    params: dict[str, Scalar] = {}
    for assignment in typed:
        name, is_assigned, value = assignment.partition("=")
        if not is_assigned:
            raise InputError(f"'{assignment}' is no NAME=VALUE")
        if name in params:
            raise InputError(f"{name}: there twice, as {params[name]!r} and as {value}")
        params[name] = _read_value(value, file.search_space.get(name))
    try:
        check_study(file.model_copy(update={"enqueue": (params,)}))
    except ConfigError as error:
        raise InputError(str(error).removeprefix("enqueue[0].")) from error
    return {name: _as_sampled(value, file.search_space[name]) for name, value in params.items()}


def _read_value(text: str, searched: Range | None) -> Scalar:
    """Read one value of TOML; what is none, such as a bare word, is a string."""
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = read["value"]
    is_scalar = len(read) == 1 and isinstance(value, bool | int | float | str)
    # A choice "1" may be typed as it is shown, without quotes.
    is_bare_choice = isinstance(searched, Categorical) and not searched.contains(value) and searched.contains(text)
    return value if is_scalar and not is_bare_choice else text


def _as_sampled(value: Scalar, searched: Range) -> Scalar:
    """Give a value as the sampler would have: 1 is 1.0 among real numbers, and a choice is the file's own."""
    if isinstance(searched, Float):
        return float(value)
    if isinstance(searched, Categorical):
        return next(choice for choice in searched.choices if choice == value)
    return value
