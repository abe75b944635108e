"""The findings of the last analysis are stored with their study, and are replaced when trials have finished since."""

from contextlib import closing

import optuna
import pytest
import sqlalchemy as sa

from hpopt.findings.finding import Finding
from hpopt.storage import findings, studies
from hpopt.storage.database import Database
from hpopt.storage.findings import CachedFindings
from hpopt.study.reading import parse_study_file


def finding(code, subject=None, message="So it is.", **evidence):
    return Finding(code=code, severity="warning", message=message, evidence=evidence, remedy="Do it.", subject=subject)


def rows_of(database):
    query = "select code, subject, message, evidence, found_at from hpopt.findings order by position"
    with database.begin() as connection:
        return connection.execute(sa.text(query)).all()


def test_findings_are_stored_in_their_order(database, study):
    stored = [finding("leak", overlap=0.9), finding("edge", "momentum"), finding("edge", "lr")]
    findings.store(database, study, stored, n_finished=3)
    rows = rows_of(database)
    assert [(row.code, row.subject) for row in rows] == [("leak", None), ("edge", "momentum"), ("edge", "lr")]
    assert rows[0].evidence == {"overlap": 0.9}


def test_findings_replace_those_of_the_last_analysis_and_keep_their_dates(database, study):
    findings.store(database, study, [finding("tie"), finding("edge", "momentum")], n_finished=3)
    before = rows_of(database)
    replacing = [finding("edge", "momentum", message="Still so."), finding("too-few-trials")]
    findings.store(database, study, replacing, n_finished=4)
    after = rows_of(database)
    assert [(row.code, row.message) for row in after] == [("edge", "Still so."), ("too-few-trials", "So it is.")]
    assert after[0].found_at == before[1].found_at
    findings.store(database, study, [], n_finished=5)
    assert rows_of(database) == []


def test_stored_findings_are_read_as_they_were(database, study):
    stored = (finding("leak", overlap=0.9, trials=[1, 2]), finding("edge", "momentum"))
    assert findings.read(database, study) == CachedFindings(findings=(), n_analyzed=None)
    findings.store(database, study, stored, n_finished=7)
    assert findings.read(database, study) == CachedFindings(findings=stored, n_analyzed=7)


def test_a_study_is_analyzed_again_when_trials_have_finished(fleet):
    """The message has the number of complete trials."""
    database, study = fleet.database, fleet.study
    fleet.finish(fleet.start(), value=3.0)
    assert "1 complete trial" in findings.current(database, study)[-1].message
    findings.store(database, study, [finding("tie")], n_finished=1)
    assert findings.current(database, study) == (finding("tie"),)
    fleet.finish(fleet.start(), value=3.0)
    assert "2 complete trials" in findings.current(database, study)[-1].message


def test_a_study_whose_file_has_changed_is_analyzed_again(fleet, study_file):
    """Another pruner has other rungs."""
    fleet.finish(fleet.start(), value=3.0)
    findings.store(fleet.database, fleet.study, [finding("tie")], n_finished=1)
    source = parse_study_file(study_file.replace("trials = 4", "trials = 5"), "tiny.toml")
    studies.create_study(fleet.database, source)
    assert "1 complete trial" in findings.current(fleet.database, fleet.study)[-1].message


def test_numbers_that_are_not_finite_are_stored_as_null(database, study):
    findings.store(database, study, [finding("tie", gap=float("nan"))], n_finished=1)
    assert findings.read(database, study).findings[0].evidence == {"gap": None}


@pytest.mark.parametrize(
    ("n_finished", "is_finished", "is_current"),
    [(1000, False, True), (1050, False, True), (1051, False, False), (1000, True, True), (1001, True, False)],
)
def test_a_running_study_is_analyzed_again_after_five_percent_more_trials(n_finished, is_finished, is_current):
    cached = CachedFindings(findings=(), n_analyzed=1000)
    assert cached.is_current(n_finished, is_finished=is_finished) is is_current


def test_a_study_that_was_never_analyzed_has_no_current_findings():
    assert not CachedFindings(findings=(), n_analyzed=None).is_current(0, is_finished=False)


def test_a_user_that_may_only_read_has_the_findings_too(fleet):
    database, study = fleet.database, fleet.study
    fleet.finish(fleet.start(), value=3.0)
    fleet.execute(f"alter database {database.engine.url.database} set default_transaction_read_only = on")
    database.disconnect()
    assert "1 complete trial" in findings.current(database, study)[-1].message
    assert findings.read(database, study).n_analyzed is None


def test_nothing_is_stored_for_a_user_of_the_reader_role(fleet, new_login):
    fleet.finish(fleet.start(), value=3.0)
    with closing(Database(new_login(fleet.database.url, "hpopt_reader"))) as reader:
        assert "1 complete trial" in findings.current(reader, fleet.study)[-1].message
    assert findings.read(fleet.database, fleet.study).n_analyzed is None


def test_nothing_is_stored_of_a_deleted_study(database, study):
    optuna.delete_study(study_name="tiny", storage=database.optuna)
    findings.store(database, study, [finding("tie")], n_finished=1)


def test_a_fault_in_storing_is_not_hidden(database, study):
    with database.begin() as connection:
        connection.execute(sa.text("alter table hpopt.finding rename column remedy to cure"))
    with pytest.raises(sa.exc.ProgrammingError, match="remedy"):
        findings.store(database, study, [finding("tie")], n_finished=1)
