"""Read the runs of a configuration of any study, for a comparison with another one."""

from collections.abc import Mapping
from typing import Any

from hpopt.analysis.arms import ArmsComparison, Side, compare_sides
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.errors import InputError, NoAnswerError, did_you_mean
from hpopt.hyperparameters import Scalar
from hpopt.storage import queries
from hpopt.storage.confirmation import find_confirmation
from hpopt.storage.database import Database
from hpopt.storage.studies import Study, find_study, load_study
from hpopt.study.arms import DATA_PARAMETERS


def compare_configurations(database: Database, left: str, right: str) -> ArmsComparison:
    """Compare two configurations by their runs with the same seeds.

    Each is STUDY (its answer), STUDY@ARM, STUDY@confirm or STUDY#TRIAL (the configuration of that trial, with all its
    seeds). Raises InputError if there is none of that name, NoAnswerError if the study has no answer yet.
    """
    baseline, treatment = (_read(database, name) for name in (left, right))
    study, table = baseline[1], baseline[2]
    return compare_sides(
        [baseline[0], treatment[0]],
        metric=table.metric,
        direction=table.direction,
        indifference=study.file.compare.indifference,
        is_finished=all(one[2].design is None or one[2].design.is_finished for one in (baseline, treatment)),
    )


def _read(database: Database, name: str) -> tuple[Side, Study, StudyTable]:
    study, arm, trial = _parse(database, name)
    if trial is None and arm is None and study.is_root:
        answer = queries.best(database, study)
        arm = answer.arm
        # The runs of a confirmed answer are those of the confirmation.
        study = (find_confirmation(database, study) if answer.source == "confirm" else None) or study
    table = queries.read_table(database, study, has_configs=True)
    if trial is not None:
        row = next((row for row in table.trials if row.trial == trial), None)
        if row is None:
            raise InputError(f"{name}: study '{study.name}' has no trial {trial}")
        runs = [other for other in table.trials if (other.arm, other.params) == (row.arm, row.params)]
    elif arm is not None:
        runs = [row for row in table.trials if row.arm == arm]
    else:
        params = _answer_params(database, study)
        runs = [row for row in table.trials if row.params == params]
    return Side(name=name, runs=tuple(runs), shared=_shared(study, runs)), study, table


def _parse(database: Database, name: str) -> tuple[Study, str | None, int | None]:
    """Return the study, the arm and the trial that a name stands for."""
    text, is_trial, number = name.partition("#")
    if is_trial and not (number.isascii() and number.isdigit()):
        raise InputError(f"{name}: '{number}' is not the number of a trial")
    trial = int(number) if is_trial else None
    study = find_study(database, text)
    if study is not None:
        return study, None, trial
    root_name, _, arm = text.partition("@")
    root = load_study(database, root_name)
    if arm in root.file.arms and trial is None:
        return root, arm, None
    if arm == "confirm":
        raise NoAnswerError(f"{name}: study '{root_name}' has no confirmation yet")
    known = did_you_mean(arm, root.file.arms) if root.file.arms else ""
    raise InputError(f"{name}: study '{root_name}' has no arm '{arm}'{known}")


def _answer_params(database: Database, study: Study) -> Mapping[str, Scalar]:
    root = study if study.is_root else load_study(database, study.name.partition("@")[0])
    return queries.best(database, root).params


def _shared(study: Study, runs: list[TrialRow]) -> dict[str, Any]:
    config = next((row.config for row in runs if row.config is not None), {})
    return {
        "objective": study.file.objective,
        "metric": study.file.metric,
        "direction": study.file.direction,
        "summary": study.file.summary,
        "data": tuple(config.get(name) for name in DATA_PARAMETERS) if config else None,
        "data fingerprint": study.data_fingerprint,
    }
