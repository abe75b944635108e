"""A finished search is followed by its confirmation, and the answer is that of its complete runs."""

import optuna
import pytest
from optuna.distributions import IntDistribution

from hpopt.storage import confirmation, control, queries, studies
from hpopt.study.reading import parse_study_file


@pytest.fixture
def searched(database, make_fleet, study_file):
    """Return a function that makes a fleet whose search has finished with the values, and with [confirm]."""

    def make(*values, direction="minimize", top=2):
        head = f'direction = "{direction}"\n[budget]\ntrials = {len(values)}\n[confirm]\ntop = {top}\nseeds = 2'
        text = study_file.replace("[budget]\ntrials = 4", head)
        fleet = make_fleet(studies.create_study(database, parse_study_file(text, "tiny.toml")))
        for value in values:
            fleet.finish(fleet.start(), value=value)
        return fleet

    return make


def confirm(fleet, make_fleet):
    """Return a fleet on the confirmation that follows."""
    return make_fleet(confirmation.continue_family(fleet.database, fleet.study, "finished").next_study)


def test_a_family_has_finished_when_its_confirmation_has(searched, make_fleet):
    fleet = searched(1.0, 2.0, 3.0)
    assert confirmation.family_finished_reason(fleet.database, fleet.study) is None
    runs = confirm(fleet, make_fleet)
    for value in (1.0, 2.0, 1.1, 2.1):
        assert confirmation.family_finished_reason(fleet.database, fleet.study) is None
        runs.finish(runs.start(), value=value)
    assert confirmation.family_finished_reason(fleet.database, fleet.study) == "trials budget exhausted (3)"


def candidates(fleet):
    (row,) = fleet.rows("select candidates from hpopt.study where role = 'confirm'")
    return [one["trial"] for one in row["candidates"]]


def test_the_best_feasible_configurations_in_the_space_are_confirmed(searched, make_fleet):
    """A script can have added any trial, with any value."""
    fleet = searched(3.0, 9.0, 1.0, 2.0, direction="maximize")
    fleet.execute(
        "insert into public.trial_system_attributes (trial_id, key, value_json) "
        "select trial_id, 'constraints:memory', '1.0' from public.trials where number = 1"
    )
    stock = fleet.stock()
    inside = stock.trials[0].params
    distributions = {
        **stock.trials[0].distributions,
        "ns_steps": IntDistribution(1, 99),
        "dropout": IntDistribution(0, 1),
    }
    without = {name: value for name, value in inside.items() if name != "momentum"}
    outside = ({**inside, "ns_steps": 99}, {**inside, "dropout": 0}, without)
    for value, params in ((8.0, {**inside, "ns_steps": 9}), *((99.0, params) for params in outside)):
        kept = {name: distributions[name] for name in params}
        stock.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=kept))
    confirm(fleet, make_fleet)
    assert candidates(fleet) == [4, 0]


def test_a_search_is_optimistic_by_what_its_value_was_better_than_the_mean(searched, make_fleet):
    fleet = searched(3.0, 2.0, direction="maximize")
    runs = confirm(fleet, make_fleet)
    by_params = {3.0: iter((2.5, 2.7)), 2.0: iter((1.0, 1.1))}
    first = fleet.stock().trials[0].params
    for _ in range(4):
        attempt = runs.start()
        runs.finish(attempt, value=next(by_params[3.0 if attempt.params == first else 2.0]))
    confirmation.continue_family(fleet.database, fleet.study, "finished")
    best = queries.best(fleet.database, fleet.study)
    assert (best.answer, best.trial, best.value, best.optimism) == (
        "confirmed",
        0,
        pytest.approx(2.6),
        pytest.approx(0.4),
    )


def test_an_answer_is_recorded_once(searched, make_fleet):
    fleet = searched(1.0, 2.0)
    runs = confirm(fleet, make_fleet)
    for value in (1.0, 2.0, 1.1, 2.1):
        runs.finish(runs.start(), value=value)
    recorded = []
    for _ in range(2):
        end = confirmation.continue_family(fleet.database, fleet.study, "finished")
        assert (end.next_study, end.reason) == (None, "finished; confirmation finished")
        recorded.append(fleet.rows("select * from hpopt.answer"))
    assert len(recorded[0]) == 1
    assert recorded[0] == recorded[1]


@pytest.mark.parametrize(
    "outcomes", [("failed", "failed", "complete", "complete"), ("complete", "complete", "pruned", "pruned")]
)
def test_without_two_seeds_that_all_configurations_completed_there_is_no_answer(searched, make_fleet, outcomes):
    fleet = searched(1.0, 2.0)
    runs = confirm(fleet, make_fleet)
    for outcome in outcomes:
        runs.finish(runs.start(), outcome, value=None if outcome == "failed" else 1.0)
    confirmation.continue_family(fleet.database, fleet.study, "finished")
    assert fleet.rows("select * from hpopt.answer") == []
    assert queries.best(fleet.database, fleet.study).answer == "unconfirmed"


def test_a_search_of_one_complete_configuration_is_not_followed(searched):
    fleet = searched(1.0)
    assert confirmation.family_finished_reason(fleet.database, fleet.study) == "trials budget exhausted (1)"
    end = confirmation.continue_family(fleet.database, fleet.study, "finished")
    assert end == confirmation.FamilyEnd(next_study=None, reason="finished")


def test_fresh_seeds_are_those_that_no_trial_of_the_family_has(searched, make_fleet, study_file):
    fleet = searched(1.0, 2.0)
    text = study_file.replace('"tiny"', '"other"')
    other = make_fleet(studies.create_study(fleet.database, parse_study_file(text, "other.toml")))
    other.start()
    for each, ran_with, enqueued_with in ((fleet, 1, 2), (other, 0, 3)):
        each.execute(f"update hpopt.attempt set seed = {ran_with} where study_id = {each.study.study_id}")
        control.enqueue(each.database, each.study, {"ns_steps": 7}, seed=enqueued_with)
    runs = confirm(fleet, make_fleet)
    assert {runs.start().seed for _ in range(4)} == {0, 3}
