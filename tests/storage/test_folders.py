"""The folders of the best trials are kept, and those of the others are returned to be deleted."""

from hpopt.storage import confirmation, control, studies
from hpopt.storage.folders import forget_folders, keep_folder
from hpopt.study.file import Confirm
from hpopt.study.reading import parse_study_file


def keep(fleet, attempt):
    """Record the folder of a complete trial, and return the attempts whose folders it replaces."""
    replaced = keep_folder(fleet.database, fleet.study, attempt, f"/runs/{attempt.attempt_id}")
    forget_folders(fleet.database, replaced)
    return [folder.attempt_id for folder in replaced]


def test_the_folder_of_an_infeasible_trial_is_replaced_by_that_of_a_worse_one(database, make_fleet, study_file):
    text = study_file.replace("[budget]", 'direction = "maximize"\n[budget]')
    fleet = make_fleet(studies.create_study(database, parse_study_file(text, "tiny.toml")))
    infeasible, worse, best = (fleet.start() for _ in range(3))
    fleet.finish(infeasible, value=9.0)
    fleet.execute(
        "insert into public.trial_system_attributes (trial_id, key, value_json) "
        f"values ({infeasible.optuna_trial_id}, 'constraints:memory', '1.0')"
    )
    assert keep(fleet, infeasible) == []
    fleet.finish(worse, value=1.0)
    assert keep(fleet, worse) == [infeasible.attempt_id]
    fleet.finish(best, value=2.0)
    assert keep(fleet, best) == [worse.attempt_id]


def test_of_a_confirmed_configuration_the_folder_of_the_lowest_seed_stays_whichever_ends_first(fleet, make_fleet):
    for value in (1.0, 2.0):
        fleet.finish(fleet.start(), value=value)
    control.stop(fleet.database, fleet.study)
    confirmed = confirmation.create_confirmation(fleet.database, fleet.study, Confirm(top=2, seeds=2))
    runs = make_fleet(confirmed)
    started = [runs.start() for _ in range(4)]
    for attempt in started:
        runs.finish(attempt, value=1.0)
    replaced = [keep(runs, attempt) for attempt in sorted(started, key=lambda attempt: -attempt.seed)]
    higher = {attempt.attempt_id for attempt in started if attempt.seed == max(one.seed for one in started)}
    assert replaced[:2] == [[], []]
    assert {one for each in replaced[2:] for one in each} == higher
