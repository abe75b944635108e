"""Owns the journal of an attempt: what it has to say, on disk until the database has it.

It lies beside the checkpoint, so that the next go of the trial finds both; `hpopt db replay` takes it in without one.
One JSON object a line: first whose it is, then evaluations in order, at last how the attempt ended.
"""

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from hpopt.errors import Fenced, InputError
from hpopt.storage import attempts, evaluations, studies
from hpopt.storage.attempts import Attempt
from hpopt.storage.database import Database
from hpopt.storage.studies import Study
from hpopt.study import plan
from hpopt.training.run import Evaluation

NAME = "undelivered.jsonl"
# A trial that was handed back or lost goes on; these ends are final.
_FINAL = ("complete", "pruned", "diverged", "failed")


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a journal holds; `end` has kind, value and reason."""

    owner: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...]
    end: Mapping[str, Any] | None

    @property
    def is_final(self) -> bool:
        """Whether the trial came to its end."""
        return self.end is not None and self.end["kind"] in _FINAL

    def lines(self) -> list[dict[str, Any]]:
        """Give what the next go has to tell: the evaluations, and the end if it is final."""
        told: list[dict[str, Any]] = [{"evaluation": asdict(evaluation)} for evaluation in self.evaluations]
        return [*told, {"end": dict(self.end)}] if self.is_final and self.end else told


class Journal:
    """Holds what was said until all of it was delivered. A full disk costs the journal, never the training."""

    def __init__(self, folder: Path, study: Study, attempt: Attempt, inherited: "Content | None" = None) -> None:
        """Begin with what the go before could not deliver, all of it or, on a full disk, nothing."""
        self.path = folder / NAME
        self._owner = {
            "study": study.name,
            "created_at": study.created_at.isoformat(),
            "attempt_id": attempt.attempt_id,
            "trial": attempt.number,
        }
        self._lock = threading.Lock()
        lines = [] if inherited is None else inherited.lines()
        self._n_undelivered = len(lines)
        if not lines:
            self.path.unlink(missing_ok=True)
            return
        lines = [self._owner, *lines]
        copy = self.path.with_suffix(".tmp")
        with suppress(OSError):
            copy.write_text("".join(json.dumps(line) + "\n" for line in lines))
            copy.replace(self.path)

    def evaluation(self, evaluation: Evaluation) -> None:
        """Write down an evaluation that is about to be sent."""
        self._append({"evaluation": asdict(evaluation)})

    def end(self, **end: Any) -> None:  # noqa: ANN401 - kind, value and reason.
        """Write down how the attempt ended, which is about to be sent."""
        self._append({"end": end})

    def delivered(self) -> None:
        """Forget what is written, once nothing of it is undelivered."""
        with self._lock:
            self._n_undelivered -= 1
            if self._n_undelivered <= 0:
                self.path.unlink(missing_ok=True)

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._lock:
            self._n_undelivered += 1
            with suppress(OSError), self.path.open("a") as file:
                if file.tell() == 0:
                    file.write(json.dumps(self._owner) + "\n")
                file.write(json.dumps(line) + "\n")


def read(path: Path) -> Content | None:
    """Read a journal, or None where there is none; lines that were cut off are left out.

    Raises InputError for a file that is no journal.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error
    entries = []
    for line in lines:
        # A disk that was full for a moment has cut one off.
        with suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    try:
        owner = {key: entries[0][key] for key in ("study", "created_at", "attempt_id", "trial")}
        evaluations = tuple(Evaluation(**entry["evaluation"]) for entry in entries[1:] if "evaluation" in entry)
        end = next((dict(entry["end"]) for entry in entries[1:] if "end" in entry), None)
    except (IndexError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a journal of hpopt") from error
    return Content(owner=owner, evaluations=evaluations, end=end)


def read_if_whole(path: Path) -> Content | None:
    """Read a journal, or None where there is none that can be read: a full disk may have left half of one."""
    try:
        return read(path)
    except InputError:
        return None


def replay(database: Database, path: Path) -> str:
    """Take a journal in, once however often it is tried; says in one line what became of it.

    Raises InputError for a file that is no journal or of a study that is not here.
    """
    content = read(path)
    if content is None:
        raise InputError(f"{path}: no such file")
    study = studies.load_study(database, content.owner["study"])
    row = _find(database, content)
    if row is None or study.created_at.isoformat() != content.owner["created_at"]:
        raise InputError(f"{path}: of another study '{study.name}' than the one in {database.address}")
    attempt = Attempt(**row, params={})
    before = _count(database, attempt)
    end = content.end if content.is_final else {"kind": "preempted", "reason": "its worker lost the database"}
    rungs, step = plan.rungs_of(study.file), _last_step(database, attempt)
    try:
        for evaluation in content.evaluations:
            rung = rungs.reached(evaluation.step, evaluation.n_steps, step)
            evaluations.record(database, study, attempt, evaluation, rung, is_live=False)
            step = max(step, evaluation.step)
        attempts.finish(database, attempt, **(end or {}), is_live=False)
    except Fenced:
        if _count(database, attempt) == before:
            return f"trial {attempt.number} was ended or handed on before: nothing was taken in"
    n_new = _count(database, attempt) - before
    ended = f"ended as {content.end['kind']}" if content.is_final and content.end else "is back in the queue"
    return f"trial {attempt.number}: {n_new} of {len(content.evaluations)} evaluations were new; it {ended}"


def _find(database: Database, content: Content) -> dict[str, Any] | None:
    query = """
        select g.attempt_id, g.study_id, g.trial_id, g.first_trial_id, t.number, g.go
        from hpopt.goes g join public.trials t using (trial_id)
        where g.attempt_id = :attempt_id and t.number = :trial
    """
    with database.begin() as connection:
        row = connection.execute(sa.text(query), content.owner).mappings().one_or_none()
    return None if row is None else dict(row)


def _last_step(database: Database, attempt: Attempt) -> int:
    query = """
        select max(e.step) from hpopt.goes g join hpopt.evaluation e using (trial_id)
        where g.first_trial_id = :first_trial_id
    """
    with database.begin() as connection:
        return int(connection.scalar(sa.text(query), {"first_trial_id": attempt.first_trial_id}) or 0)


def _count(database: Database, attempt: Attempt) -> int:
    query = "select count(*) from hpopt.evaluation where trial_id = :trial_id"
    with database.begin() as connection:
        return int(connection.scalar(sa.text(query), {"trial_id": attempt.trial_id}) or 0)
