"""Store the findings of the last analysis of a study, and analyze it again when trials have finished since."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from hpopt.errors import DatabaseError, DatabasePermissionError
from hpopt.findings.finding import Finding
from hpopt.formats import to_json
from hpopt.storage import budget, queries
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

# A running study is analyzed again when this many times as many trials have finished.
_GROWTH = 1.05
# The SQLSTATE of foreign_key_violation.
_NO_STUDY = "23503"


@dataclass(frozen=True, kw_only=True)
class CachedFindings:
    """The findings of the last analysis, the most severe first, and the number of trials that had finished then.

    `n_analyzed` is None before the first analysis.
    """

    findings: tuple[Finding, ...]
    n_analyzed: int | None

    def is_current(self, n_finished: int, *, is_finished: bool) -> bool:
        """Return whether another analysis would hardly find anything else."""
        if self.n_analyzed is None:
            return False
        return n_finished == self.n_analyzed or (not is_finished and n_finished <= _GROWTH * self.n_analyzed)


def current(database: Database, study: Study) -> tuple[Finding, ...]:
    """Return the findings of a study, after a new analysis if trials have finished since the last one."""
    cached, usage = read(database, study), budget.read_usage(database, study)
    if cached.is_current(usage.n_finished, is_finished=budget.finished_reason(study, usage) is not None):
        return cached.findings
    # These import scipy, which takes a second.
    from hpopt.analysis.insights import compute_insights  # noqa: PLC0415
    from hpopt.findings.detection import detect_findings  # noqa: PLC0415

    table = queries.read_table(database, study)
    findings = detect_findings(table, compute_insights(table))
    store(database, study, findings, n_finished=usage.n_finished)
    return findings


def read(database: Database, study: Study) -> CachedFindings:
    """Return the findings of the last analysis."""
    parameters = {"study_id": study.study_id}
    with database.begin() as connection:
        n_analyzed = connection.scalar(_N_ANALYZED, parameters)
        rows = connection.execute(_READ, parameters).mappings().all()
    return CachedFindings(findings=tuple(Finding(**row) for row in rows), n_analyzed=n_analyzed)


def store(database: Database, study: Study, findings: Sequence[Finding], *, n_finished: int) -> None:
    """Replace the stored findings by these, the most severe first; a finding that was stored before keeps its date.

    Stores nothing for a user that may only read the database, while it is unreachable, or after the study was deleted.
    """
    rows = [
        {
            "study_id": study.study_id,
            "code": finding.code,
            "subject": finding.subject or "",
            "position": position,
            "severity": finding.severity,
            "message": finding.message,
            "evidence": to_json(finding.evidence),
            "remedy": finding.remedy,
        }
        for position, finding in enumerate(findings, start=1)
    ]
    current_keys = [f"{row['code']} {row['subject']}" for row in rows]
    try:
        with database.brief() as connection:
            connection.execute(_DELETE, {"study_id": study.study_id, "current": current_keys})
            if rows:
                connection.execute(_STORE, rows)
            connection.execute(_SET_ANALYZED, {"study_id": study.study_id, "n_finished": n_finished})
    except (DatabaseError, DatabasePermissionError):
        return
    except sa.exc.IntegrityError as error:
        if getattr(error.orig, "pgcode", None) != _NO_STUDY:
            raise


_N_ANALYZED = sa.text("select n_analyzed from hpopt.study where study_id = :study_id")
_READ = sa.text(
    """
    select code, severity, nullif(subject, '') as subject, message, evidence, remedy
    from hpopt.finding where study_id = :study_id order by position
    """
)
_DELETE = sa.text("delete from hpopt.finding where study_id = :study_id and not code || ' ' || subject = any(:current)")
_STORE = sa.text(
    """
    insert into hpopt.finding (study_id, code, subject, position, severity, message, evidence, remedy)
    values (:study_id, :code, :subject, :position, :severity, :message, cast(:evidence as jsonb), :remedy)
    on conflict (study_id, code, subject) do update
    set position = excluded.position, severity = excluded.severity, message = excluded.message,
        evidence = excluded.evidence, remedy = excluded.remedy
    """
)
_SET_ANALYZED = sa.text("update hpopt.study set n_analyzed = :n_finished where study_id = :study_id")
