"""Compare the arms of a study once its runs have finished, and record what they show."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from hpopt.analysis.answer import AnswerKind
from hpopt.errors import DatabasePermissionError
from hpopt.formats import storable, to_json
from hpopt.storage import budget, queries
from hpopt.storage.configurations import lock_study
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

if TYPE_CHECKING:
    from hpopt.analysis.arms import ArmsComparison, SideComparison, SideSummary


def compare_study(database: Database, study: Study) -> "ArmsComparison":
    """Compare the arms of a study, and record the result if all its runs have finished."""
    # It imports scipy, which takes a second.
    from hpopt.analysis.arms import compare_arms  # noqa: PLC0415

    n_runs = budget.read_usage(database, study).n_finished
    table = queries.read_table(database, study)
    compared = compare_arms(table)
    assert compared is not None  # noqa: S101 - only called for a study with arms.
    if table.design is not None and table.design.is_finished:
        _record(database, study, compared, n_runs=n_runs)
    return compared


def record_comparison(database: Database, study: Study) -> None:
    """Record what a finished comparison shows, unless it is recorded."""
    n_finished = budget.read_usage(database, study).n_finished
    with database.begin() as connection:
        n_runs = connection.scalar(_N_RUNS, {"study_id": study.study_id})
    if n_runs != n_finished:
        compare_study(database, study)


def _record(database: Database, study: Study, compared: "ArmsComparison", *, n_runs: int) -> None:
    """Replace what is recorded. A user that may only read the database records nothing."""
    parameters = {"study_id": study.study_id, "n_runs": n_runs}
    comparisons = [
        {**parameters, "position": position, **_comparison_row(one)}
        for position, one in enumerate(compared.comparisons, start=1)
    ]
    answers = [{**parameters, **_answer_row(study, *answer)} for answer in _answers(compared)]
    try:
        with database.brief() as connection:
            if lock_study(connection, study.study_id) is None:
                return
            connection.execute(_DELETE, parameters)
            connection.execute(_INSERT_COMPARISON, comparisons)
            if answers:
                connection.execute(_INSERT_ANSWER, answers)
    except DatabasePermissionError:
        return


def _answers(compared: "ArmsComparison") -> "Iterator[tuple[SideSummary, AnswerKind]]":
    """Yield the better arm, else the first one with what the comparison shows; and each arm with other data."""
    if compared.fault is not None:
        return
    baseline, *others = compared.sides
    results = {one.treatment: one.result for one in compared.comparisons if one.result is not None}
    better = [side for side in others if side.name in results and results[side.name].verdict == "better"]
    verdicts = {result.verdict.value for result in results.values()}
    unlike = {one.treatment for one in compared.comparisons if one.is_unlike}
    if better:
        yield min(better, key=lambda side: compared.direction.loss(side.mean)), AnswerKind.BETTER
    elif verdicts:
        kinds = (AnswerKind.UNDECIDED, AnswerKind.EQUIVALENT)
        yield baseline, next((kind for kind in kinds if kind.value in verdicts), AnswerKind.BETTER)
    elif unlike and baseline.n:
        yield baseline, AnswerKind.UNCONFIRMED
    yield from ((side, AnswerKind.UNCONFIRMED) for side in others if side.name in unlike and side.n)


def _comparison_row(one: "SideComparison") -> dict[str, Any]:
    result = one.result
    needed = result.needed if result else None
    return {
        "baseline": one.baseline,
        "treatment": one.treatment,
        "n": len(one.seeds),
        "difference": result and result.difference,
        "low": result and result.low,
        "high": result and result.high,
        "p_value": result and result.p_value,
        "permutation_p_value": result and result.permutation_p_value,
        "detectable": result and result.detectable,
        "verdict": result and result.verdict,
        "needed_seeds_low": needed and needed.low,
        "needed_seeds_high": needed and needed.high,
        "reason": None if one.reason is None else storable(one.reason),
    }


def _answer_row(study: Study, side: "SideSummary", kind: AnswerKind) -> dict[str, Any]:
    return {
        "arm": side.name,
        "kind": kind,
        "params": to_json(study.file.arm_values(study.defaults)[side.name], keep_non_finite=True),
        "value": side.mean,
        "value_low": side.low,
        "value_high": side.high,
        "n_seeds": side.n,
        "trial": side.trial,
    }


_N_RUNS = sa.text("select max(n_runs) from hpopt.comparison where study_id = :study_id")

_DELETE = sa.text(
    """
    with compared as (delete from hpopt.comparison where study_id = :study_id)
    delete from hpopt.answer where study_id = :study_id
    """
)

_INSERT_COMPARISON = sa.text(
    """
    insert into hpopt.comparison (
        study_id, position, n_runs, baseline, treatment, n, difference, low, high, p_value, permutation_p_value,
        detectable, verdict, needed_seeds_low, needed_seeds_high, reason
    )
    values (
        :study_id, :position, :n_runs, :baseline, :treatment, :n, :difference, :low, :high, :p_value,
        :permutation_p_value, :detectable, :verdict, :needed_seeds_low, :needed_seeds_high, :reason
    )
    """
)

_INSERT_ANSWER = sa.text(
    """
    insert into hpopt.answer (
        study_id, arm, confirmation_id, n_runs, kind, params, trial, value, value_low, value_high, n_seeds
    )
    values (
        :study_id, :arm, :study_id, :n_runs, :kind, cast(:params as jsonb), :trial, :value, :value_low, :value_high,
        :n_seeds
    )
    """
)
