"""Store what an attempt reports on disk until the database has it.

The outbox is a file beside the checkpoint, so that the next attempt at the trial finds both; `hpopt db replay` sends it
without another attempt. It has one JSON object a line: first its attempt, then evaluations in order, last the result.
"""

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from hpopt.analysis.trials import Outcome
from hpopt.errors import Fenced, InputError
from hpopt.storage import attempts, evaluations, studies
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.studies import Study
from hpopt.training.run import Evaluation
from hpopt.worker.objective import TrialResult

NAME = "outbox.jsonl"


@dataclass(frozen=True, kw_only=True)
class Unsent:
    """What an outbox has: the attempt that it belongs to, its unsent evaluations, and its result if it had ended."""

    owner: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...]
    result: TrialResult | None

    @property
    def final_result(self) -> TrialResult | None:
        """The result if the trial has finished with it, else None: a lost or preempted trial is retried."""
        return self.result if self.result is not None and self.result.outcome.is_final else None

    def lines(self) -> list[dict[str, Any]]:
        """Return what the next attempt has to resend: the evaluations, and the result if it is final."""
        lines: list[dict[str, Any]] = [{"evaluation": asdict(evaluation)} for evaluation in self.evaluations]
        return lines if self.final_result is None else [*lines, _result_line(self.final_result)]


class Outbox:
    """The outbox of one attempt. A full disk costs its content, never the training."""

    def __init__(self, folder: Path, study: Study, attempt: Attempt, inherited: Unsent | None = None) -> None:
        """Begin with what the previous attempt could not send: all of it, or on a full disk nothing."""
        self.path = folder / NAME
        self._owner = {
            "study": study.name,
            "created_at": study.created_at.isoformat(),
            "attempt_id": attempt.attempt_id,
            "trial": attempt.number,
        }
        self._lock = threading.Lock()
        lines = [] if inherited is None else inherited.lines()
        self._n_unsent = len(lines)
        if not lines:
            self.path.unlink(missing_ok=True)
            return
        lines = [self._owner, *lines]
        copy = self.path.with_suffix(".tmp")
        with suppress(OSError):
            copy.write_text("".join(json.dumps(line) + "\n" for line in lines))
            copy.replace(self.path)

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Store an evaluation that is about to be sent."""
        self._append({"evaluation": asdict(evaluation)})

    def add_result(self, result: TrialResult) -> None:
        """Store the result, which is about to be sent."""
        self._append(_result_line(result))

    def mark_sent(self, n_lines: int) -> None:
        """Count lines as sent, and delete the file when all are."""
        with self._lock:
            self._n_unsent -= n_lines
            if self._n_unsent <= 0:
                self.path.unlink(missing_ok=True)

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._lock:
            self._n_unsent += 1
            with suppress(OSError), self.path.open("a") as file:
                if file.tell() == 0:
                    file.write(json.dumps(self._owner))
                # Before the line, not after it: the one before can be incomplete.
                file.write("\n" + json.dumps(line))


def read(path: Path) -> Unsent | None:
    """Read an outbox, or return None if there is none; incomplete lines are left out.

    Raises InputError for another file.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error
    entries = []
    for line in lines:
        # A disk that was full for a while leaves an incomplete line.
        with suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    try:
        owner = {key: entries[0][key] for key in ("study", "created_at", "attempt_id", "trial")}
        unsent = tuple(Evaluation(**entry["evaluation"]) for entry in entries[1:] if "evaluation" in entry)
        result = next((_parse_result(entry["result"]) for entry in entries[1:] if "result" in entry), None)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not an outbox of hpopt") from error
    return Unsent(owner=owner, evaluations=unsent, result=result)


def read_or_none(path: Path) -> Unsent | None:
    """Read an outbox, or return None if there is none that can be read: a full disk can leave half of one."""
    try:
        return read(path)
    except InputError:
        return None


def replay(database: Database, path: Path) -> str:
    """Send an outbox, once however often it is repeated, and return a line about its trial.

    Raises InputError for another file, or for an outbox of a study that is not in this database.
    """
    unsent = read(path)
    if unsent is None:
        raise InputError(f"{path}: no such file")
    study = studies.load_study(database, unsent.owner["study"])
    row = _find_attempt(database, unsent)
    if row is None or study.created_at.isoformat() != unsent.owner["created_at"]:
        raise InputError(f"{path}: of another study '{study.name}' than the one in {database.address}")
    attempt = Attempt(**row, params={})
    n_before = _count_evaluations(database, attempt)
    requeued = TrialResult(outcome=Outcome.PREEMPTED, reason="the worker lost the database")
    result = unsent.final_result or requeued
    try:
        for evaluation in unsent.evaluations:
            evaluations.record(database, study, attempt, evaluation, is_live=False)
        attempts.finish(
            database,
            attempt,
            result.outcome,
            value=result.value,
            reason=result.reason,
            test_metrics=result.test_metrics,
            is_live=False,
        )
    except Fenced:
        if _count_evaluations(database, attempt) == n_before:
            return f"trial {attempt.number} had ended or was reassigned: nothing was recorded"
    n_new = _count_evaluations(database, attempt) - n_before
    end = "was returned to the queue" if unsent.final_result is None else f"ended as {result.outcome}"
    return f"trial {attempt.number}: {n_new} of {len(unsent.evaluations)} evaluations were new; it {end}"


def _result_line(result: TrialResult) -> dict[str, Any]:
    fields = {"value": result.value, "reason": result.reason, "test_metrics": result.test_metrics}
    return {"result": {"outcome": result.outcome, **fields}}


def _parse_result(line: Mapping[str, Any]) -> TrialResult:
    fields = {name: line[name] for name in ("value", "reason", "test_metrics")}
    return TrialResult(outcome=Outcome(line["outcome"]), **fields)


def _find_attempt(database: Database, unsent: Unsent) -> dict[str, Any] | None:
    query = """
        select a.attempt_id, a.study_id, a.trial_id, a.optuna_trial_id, t.number, a.attempt_number
        from hpopt.attempts a join public.trials t on t.trial_id = a.optuna_trial_id
        where a.attempt_id = :attempt_id and t.number = :trial
    """
    with database.begin() as connection:
        row = connection.execute(sa.text(query), unsent.owner).mappings().one_or_none()
    return None if row is None else dict(row)


def _count_evaluations(database: Database, attempt: Attempt) -> int:
    query = "select count(*) from hpopt.evaluation where optuna_trial_id = :optuna_trial_id"
    with database.begin() as connection:
        return int(connection.scalar(sa.text(query), {"optuna_trial_id": attempt.optuna_trial_id}) or 0)
