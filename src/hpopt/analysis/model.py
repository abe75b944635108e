"""Build the model of a study that several analyses share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

from hpopt.analysis.anova import Decomposition, decompose, draw_surrogates
from hpopt.analysis.sample import (
    LeftOut,
    Sample,
    assess_table,
    completed,
    find_left_out,
    with_extrapolated,
)
from hpopt.analysis.surrogate import MIN_TRIALS, Surrogate, fit
from hpopt.analysis.trials import StudyTable

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The surrogate of a study's final values and what follows from it.

    `draws` are surrogates with hyperparameters drawn from their posterior. `decomposition` is None where the surrogate
    is constant. `p_values` are those of the parameters, by name.
    """

    sample: Sample
    surrogate: Surrogate
    draws: tuple[Surrogate, ...]
    decomposition: Decomposition | None
    left_out: LeftOut
    p_values: Mapping[str, float]


def limit_blas_threads(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run the linear algebra of a function on one thread.

    The matrices of an analysis are small, and beside trainings the threads wait for each other: on two busy cores an
    analysis of half a second took twenty.
    """

    @wraps(function)
    def limited(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with threadpool_limits(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited


@limit_blas_threads
def build_model(table: StudyTable) -> Model | None:
    """Model the final values of complete trials and the extrapolated ones of pruned trials; None if not possible."""
    if reason_not_fitted(table) is not None:
        return None
    sample = with_extrapolated(table)
    surrogate = fit(sample.design, sample.values, sign=table.direction.sign, stds=sample.stds)
    draws = draw_surrogates(surrogate)
    return Model(
        sample=sample,
        surrogate=surrogate,
        draws=draws,
        decomposition=decompose(surrogate, draws),
        left_out=find_left_out(table, {row.trial for row in sample.design.rows}),
        p_values=assess_table(table, sample),
    )


def reason_not_fitted(table: StudyTable) -> str | None:
    """Return why a model of the study cannot be fitted, or None if it can."""
    design = completed(table)
    if not table.search_space:
        return "the study searches no parameter"
    if len(design.rows) < MIN_TRIALS:
        return f"not enough data: {MIN_TRIALS} complete trials are needed, there are {len(design.rows)}"
    if not design.axes:
        return "every range of the study has one value only"
    if (design.points == design.points[0]).all():
        return "all complete trials have the same params"
    if len({row.value for row in design.rows}) == 1:
        return "all complete trials have the same value"
    return None
