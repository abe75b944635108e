"""Findings are kept with their study: what is no longer found goes, what is found again keeps its date."""

import sqlalchemy as sa

from hpopt.findings.finding import Finding
from hpopt.storage import attempts, findings, studies
from hpopt.storage.observations import ObservedTrials
from hpopt.study.reading import parse_study_file


def finding(code, subject=None, message="So it is.", **evidence):
    return Finding(code=code, severity="warning", message=message, evidence=evidence, remedy="Do it.", subject=subject)


def complete_a_trial(database, study):
    observed = ObservedTrials(database, study)
    worker = attempts.register_worker(database, study, host="here", pid=1, device="cpu")
    attempt = attempts.reserve(database, study, worker)
    observed.refresh()
    params = observed.propose(study, attempt)
    attempts.start(database, study, attempt, params, seed=attempt.number, config={}, data_fingerprint=None)
    attempts.finish(database, attempt, kind="complete", value=3.0)


def kept(database):
    query = "select code, subject, message, evidence, found_at from hpopt.findings order by position"
    with database.begin() as connection:
        return connection.execute(sa.text(query)).all()


def test_findings_are_kept_in_their_order(database, study):
    findings.store(
        database,
        study,
        [finding("leak", overlap=0.9), finding("edge", "momentum"), finding("edge", "lr")],
        n_finished=3,
    )
    rows = kept(database)
    assert [(row.code, row.subject) for row in rows] == [("leak", None), ("edge", "momentum"), ("edge", "lr")]
    assert rows[0].evidence == {"overlap": 0.9}


def test_the_next_analysis_takes_the_place_of_the_last(database, study):
    findings.store(database, study, [finding("tie"), finding("edge", "momentum")], n_finished=3)
    before = kept(database)
    findings.store(
        database, study, [finding("edge", "momentum", message="Still so."), finding("too-few-trials")], n_finished=4
    )
    after = kept(database)
    assert [(row.code, row.message) for row in after] == [("edge", "Still so."), ("too-few-trials", "So it is.")]
    assert after[0].found_at == before[1].found_at
    findings.store(database, study, [], n_finished=5)
    assert kept(database) == []


def test_what_is_kept_is_read_as_it_was(database, study):
    found = (finding("leak", overlap=0.9, trials=[1, 2]), finding("edge", "momentum"))
    assert findings.read(database, study) == findings.Kept(findings=(), n_analyzed=None)
    findings.store(database, study, found, n_finished=7)
    assert findings.read(database, study) == findings.Kept(findings=found, n_analyzed=7)


def test_a_study_is_analysed_again_when_trials_have_ended(database, study):
    """One complete trial is too few, and two still are: the counts in the sentence tell them apart."""
    complete_a_trial(database, study)
    first = findings.current(database, study)
    assert "1 complete trial is too few" in first[-1].message
    findings.store(database, study, [finding("tie")], n_finished=1)
    assert findings.current(database, study) == (finding("tie"),)
    complete_a_trial(database, study)
    assert "2 complete trials are too few" in findings.current(database, study)[-1].message


def test_a_study_whose_file_has_changed_is_analysed_again(database, study, study_file):
    """Another pruner has other rungs, and what was said of the old ones may not hold."""
    complete_a_trial(database, study)
    findings.store(database, study, [finding("tie")], n_finished=1)
    studies.create_study(database, parse_study_file(study_file.replace("trials = 4", "trials = 5")), "tiny.toml")
    assert "1 complete trial is too few" in findings.current(database, study)[-1].message


def test_numbers_that_are_not_finite_are_kept_as_nothing(database, study):
    findings.store(database, study, [finding("tie", gap=float("nan"))], n_finished=1)
    assert findings.read(database, study).findings[0].evidence == {"gap": None}


def test_while_a_study_of_thousands_runs_a_few_more_trials_can_wait():
    kept = findings.Kept(findings=(), n_analyzed=1000)
    assert kept.holds(1050, is_over=False)
    assert not kept.holds(1051, is_over=False)
    assert not kept.holds(1001, is_over=True)
    assert kept.holds(1000, is_over=True)


def test_who_may_only_read_is_told_all_the_same(database, study):
    complete_a_trial(database, study)
    with database.begin() as connection:
        connection.execute(
            sa.text(f"alter database {database.engine.url.database} set default_transaction_read_only = on")
        )
    database.release()
    assert "1 complete trial is too few" in findings.current(database, study)[-1].message
    assert findings.read(database, study).n_analyzed is None
