"""Owns how many cores an analysis takes: one.

Its matrices are small, and beside trainings the threads of the linear algebra wait for each other: on two cores that
others use, an analysis of half a second took twenty.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def on_one_core(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function's linear algebra run without threads."""

    @wraps(function)
    def limited(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with threadpool_limits(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited
