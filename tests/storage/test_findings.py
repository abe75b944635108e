"""Findings are kept with their study: what is no longer found goes, what is found again keeps its date."""

import sqlalchemy as sa

from hpopt.findings.finding import Finding
from hpopt.storage import findings


def finding(code, subject=None, sentence="So it is.", **evidence):
    return Finding(
        code=code, severity="warning", sentence=sentence, evidence=evidence, remedy="Do it.", subject=subject
    )


def kept(database):
    query = "select code, subject, sentence, evidence, found_at from hpopt.findings order by place"
    with database.begin() as connection:
        return connection.execute(sa.text(query)).all()


def test_findings_are_kept_in_their_order(database, study):
    findings.keep(database, study, [finding("leak", overlap=0.9), finding("edge", "momentum"), finding("edge", "lr")])
    rows = kept(database)
    assert [(row.code, row.subject) for row in rows] == [("leak", None), ("edge", "momentum"), ("edge", "lr")]
    assert rows[0].evidence == {"overlap": 0.9}


def test_the_next_analysis_takes_the_place_of_the_last(database, study):
    findings.keep(database, study, [finding("tie"), finding("edge", "momentum")])
    before = kept(database)
    findings.keep(database, study, [finding("edge", "momentum", sentence="Still so."), finding("too-few-trials")])
    after = kept(database)
    assert [(row.code, row.sentence) for row in after] == [("edge", "Still so."), ("too-few-trials", "So it is.")]
    assert after[0].found_at == before[1].found_at
    findings.keep(database, study, [])
    assert kept(database) == []
