"""Owns the findings that are kept with a study, in hpopt.finding, for everybody who asks later.

Leaves finding them to findings/. An analysis takes a second or more, so it is made when trials have ended since.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpopt.errors import DatabaseError
from hpopt.findings.finding import Finding
from hpopt.storage import budget, queries
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

# A study that runs is looked at again when so many more trials have ended: what few of thousands add can wait.
_GROWTH = 1.05


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The findings of the last analysis, the most severe first, and how many trials had ended then; None before any."""

    findings: tuple[Finding, ...]
    n_analysed: int | None

    def holds(self, n_ended: int, *, is_over: bool) -> bool:
        """Say whether another analysis would hardly find anything else."""
        if self.n_analysed is None:
            return False
        return n_ended == self.n_analysed or (not is_over and n_ended <= _GROWTH * self.n_analysed)


def current(database: Database, study: Study) -> tuple[Finding, ...]:
    """Give the findings of a study, by a new analysis if trials have ended since the last."""
    kept, spent = read(database, study), budget.read_books(database, study)
    if kept.holds(spent.n_ended, is_over=budget.finished(study, spent) is not None):
        return kept.findings
    # They need scipy, whose import takes a second.
    from hpopt.analysis.insights import compute_insights  # noqa: PLC0415
    from hpopt.findings.detection import detect_findings  # noqa: PLC0415

    table = queries.read_table(database, study)
    found = detect_findings(table, compute_insights(table))
    keep(database, study, found, n_ended=spent.n_ended)
    return found


def read(database: Database, study: Study) -> Kept:
    """Give what the last analysis found."""
    about = {"study_id": study.study_id}
    with database.begin() as connection:
        n_analysed = connection.scalar(_N_ANALYSED, about)
        rows = connection.execute(_READ, about).mappings().all()
    return Kept(findings=tuple(Finding(**row) for row in rows), n_analysed=n_analysed)


def keep(database: Database, study: Study, findings: Sequence[Finding], *, n_ended: int) -> None:
    """Keep these, the most severe first, in place of those of the last analysis; one found again keeps its date.

    Who may only read this database keeps nothing, and need not know.
    """
    rows = [
        {
            "study_id": study.study_id,
            "code": finding.code,
            "subject": finding.subject or "",
            "position": position,
            "severity": finding.severity,
            "message": finding.message,
            "evidence": _as_json(finding.evidence),
            "remedy": finding.remedy,
        }
        for position, finding in enumerate(findings, start=1)
    ]
    known = [f"{row['code']} {row['subject']}" for row in rows]
    try:
        with database.brief() as connection:
            connection.execute(_FORGET, {"study_id": study.study_id, "known": known})
            if rows:
                connection.execute(_KEEP, rows)
            connection.execute(_NOTE, {"study_id": study.study_id, "n_ended": n_ended})
    except (DatabaseError, sa.exc.DBAPIError):
        # Or the study is gone meanwhile.
        return


def _as_json(evidence: Mapping[str, Any]) -> str:
    """Write numbers as Postgres takes them: it has no JSON for those that are not finite."""
    return json.dumps(json.loads(json.dumps(evidence, default=str), parse_constant=lambda _: None))


_N_ANALYSED = sa.text("select n_analysed from hpopt.study where study_id = :study_id")
_READ = sa.text(
    """
    select code, severity, nullif(subject, '') as subject, message, evidence, remedy
    from hpopt.finding where study_id = :study_id order by position
    """
)
_FORGET = sa.text("delete from hpopt.finding where study_id = :study_id and not code || ' ' || subject = any(:known)")
_KEEP = sa.text(
    """
    insert into hpopt.finding (study_id, code, subject, position, severity, message, evidence, remedy)
    values (:study_id, :code, :subject, :position, :severity, :message, cast(:evidence as jsonb), :remedy)
    on conflict (study_id, code, subject) do update
    set position = excluded.position, severity = excluded.severity, message = excluded.message,
        evidence = excluded.evidence, remedy = excluded.remedy
    """
)
_NOTE = sa.text("update hpopt.study set n_analysed = :n_ended where study_id = :study_id")
