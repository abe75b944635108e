"""Owns the findings that are kept with a study, in hpopt.finding, for everybody who asks later. Leaves finding them."""

import json
from collections.abc import Sequence

import sqlalchemy as sa

from hpopt.findings.finding import Finding
from hpopt.storage.database import Database
from hpopt.storage.studies import Study


def keep(database: Database, study: Study, findings: Sequence[Finding]) -> None:
    """Keep these, the gravest first, in place of those of the last analysis; one found again keeps its date."""
    rows = [
        {
            "study_id": study.study_id,
            "code": finding.code,
            "subject": finding.subject or "",
            "place": place,
            "sentence": finding.sentence,
            "evidence": json.dumps(finding.evidence, default=str),
            "remedy": finding.remedy,
        }
        for place, finding in enumerate(findings, start=1)
    ]
    known = [f"{row['code']} {row['subject']}" for row in rows]
    with database.brief() as connection:
        connection.execute(_FORGET, {"study_id": study.study_id, "known": known})
        if rows:
            connection.execute(_KEEP, rows)


_FORGET = sa.text("delete from hpopt.finding where study_id = :study_id and not code || ' ' || subject = any(:known)")
_KEEP = sa.text(
    """
    insert into hpopt.finding (study_id, code, subject, place, sentence, evidence, remedy)
    values (:study_id, :code, :subject, :place, :sentence, cast(:evidence as jsonb), :remedy)
    on conflict (study_id, code, subject) do update
    set place = excluded.place, sentence = excluded.sentence, evidence = excluded.evidence, remedy = excluded.remedy
    """
)
