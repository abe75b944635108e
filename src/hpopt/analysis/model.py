"""Owns the model of a study that several analyses share, so that it is computed once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

from hpopt.analysis.anova import Decomposition, decompose, draw_variants
from hpopt.analysis.sample import LeftOut, Sample, assess_table, completed, find_left_out, with_extrapolated
from hpopt.analysis.surrogate import Surrogate, fit, reason_not_fitted
from hpopt.analysis.trials import StudyTable

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The surrogate of the expected values, what it may be instead, and its parts; no parts where it is constant.

    `p_values` are those of the parameters.
    """

    sample: Sample
    surrogate: Surrogate
    variants: tuple[Surrogate, ...]
    decomposition: Decomposition | None
    left_out: LeftOut
    p_values: Mapping[str, float]


def limit_blas_threads(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run the linear algebra of a function on one thread.

    The matrices of an analysis are small, and its threads would wait for each other beside trainings: on two busy cores
    an analysis of half a second took twenty.
    """

    @wraps(function)
    def limited(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with threadpool_limits(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited


@limit_blas_threads
def build_model(table: StudyTable) -> Model | None:
    """Model the final values of the complete trials and the extrapolated ones of pruned; None where there are few."""
    if reason_not_fitted(table, completed(table)) is not None:
        return None
    sample = with_extrapolated(table)
    surrogate = fit(sample.design, sample.values, sign=table.direction.sign, stds=sample.stds)
    variants = draw_variants(surrogate)
    return Model(
        sample=sample,
        surrogate=surrogate,
        variants=variants,
        decomposition=decompose(surrogate, variants),
        left_out=find_left_out(table, {row.trial for row in sample.design.rows}),
        p_values=assess_table(table, sample),
    )
