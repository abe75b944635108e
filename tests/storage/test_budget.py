"""The usage of a budget is that of all attempts, and the first limit reached finishes the study."""

import pytest

from hpopt.storage import budget, confirmation, studies
from hpopt.study.reading import parse_study_file

SPACE = "[search_space]\nmomentum = { low = 0.8, high = 0.99 }\n"


@pytest.fixture
def limited(database, make_fleet):
    """Return a function that makes a fleet on a study with the given budget."""

    def make(limit, head=""):
        text = f'name = "limits"\n{head}[budget]\n{limit}\n{SPACE}'
        return make_fleet(studies.create_study(database, parse_study_file(text, "limits.toml")))

    return make


def usage_of(fleet):
    return budget.read_usage(fleet.database, fleet.study)


def reason_of(fleet):
    return budget.finished_reason(fleet.study, usage_of(fleet))


def view_of(fleet):
    (row,) = fleet.rows("select device_hours, wall_hours, best_value from hpopt.budget_usage")
    return dict(row)


def test_the_device_time_of_a_study_is_that_of_its_attempts(fleet):
    """That of ended attempts is a counter in the row of the study; several can end in one statement."""
    finished, lost, lost_too, running = (fleet.start() for _ in range(4))
    fleet.execute("update hpopt.attempt set started_at = now() - interval '100 seconds'")
    for attempt in (finished, lost, lost_too, running):
        fleet.record(attempt, 10)
    fleet.finish(finished, value=1.0)
    fleet.execute(
        "update hpopt.attempt set heartbeat_at = now() - interval '1 hour' "
        f"where attempt_id in ({lost.attempt_id}, {lost_too.attempt_id})"
    )
    assert fleet.reap() == 2
    hours = usage_of(fleet).device_hours
    assert hours == pytest.approx(400 / 3600, abs=4 / 3600)
    assert hours == pytest.approx(fleet.rows("select sum(device_seconds) / 3600 as h from hpopt.attempts")[0]["h"])
    assert hours == pytest.approx(view_of(fleet)["device_hours"])


def test_an_attempt_that_is_finished_twice_is_charged_once(fleet):
    attempt = fleet.start()
    fleet.execute("update hpopt.attempt set started_at = now() - interval '1 hour'")
    fleet.finish(attempt, value=1.0)
    fleet.finish(attempt, value=1.0)
    assert usage_of(fleet).device_hours == pytest.approx(1.0, rel=0.01)


def test_the_usage_of_a_study_without_attempts_is_nothing(fleet):
    assert view_of(fleet) == {"device_hours": 0.0, "wall_hours": 0.0, "best_value": None}
    usage = usage_of(fleet)
    assert (usage.n_started, usage.device_hours, usage.wall_hours) == (0, 0.0, 0.0)


def test_wall_hours_are_those_in_which_a_worker_was_at_work(fleet):
    """A night between two runs does not count, and neither does the time until a lost worker is missed."""
    evening, beside, morning = (fleet.start() for _ in range(3))
    for attempt, began, ended in ((evening, 20, 18), (beside, 19, 17), (morning, 2, 1)):
        fleet.finish(attempt, value=1.0)
        hours = f"started_at = now() - interval '{began} hours', ended_at = now() - interval '{ended} hours'"
        fleet.execute(f"update hpopt.attempt set {hours} where attempt_id = {attempt.attempt_id}")
    assert usage_of(fleet).wall_hours == pytest.approx(4.0, rel=1e-3)
    lost = fleet.start()
    fleet.execute(
        "update hpopt.attempt set started_at = now() - interval '16 hours', heartbeat_at = now() - interval '15 hours' "
        f"where attempt_id = {lost.attempt_id}"
    )
    assert usage_of(fleet).wall_hours == pytest.approx(5.0, rel=1e-3)
    assert fleet.reap() == 1
    assert usage_of(fleet).wall_hours == pytest.approx(5.0, rel=1e-3)


@pytest.mark.parametrize(("direction", "best"), [("minimize", 1.5), ("maximize", 3.0)])
def test_the_best_value_is_that_of_a_complete_trial_in_the_direction_of_the_study(limited, direction, best):
    """A pruned trial is not complete, and a diverged or infeasible one can have any value."""
    fleet = limited("trials = 9", f'direction = "{direction}"\n')
    complete, other, pruned, infeasible = (fleet.start() for _ in range(4))
    fleet.finish(complete, value=3.0)
    fleet.finish(other, value=1.5)
    fleet.finish(pruned, "pruned", value=0.5 if direction == "minimize" else 9.0)
    fleet.finish(infeasible, value=0.1 if direction == "minimize" else 8.0)
    fleet.execute(
        "insert into public.trial_system_attributes (trial_id, key, value_json) "
        f"values ({infeasible.optuna_trial_id}, 'constraints:memory', '1.0')"
    )
    assert view_of(fleet)["best_value"] == best
    assert usage_of(fleet).best_value == best


def test_a_retried_trial_is_counted_once_in_each_state(fleet):
    finished, requeued, lost = (fleet.start() for _ in range(3))
    fleet.finish(finished, value=1.0)
    fleet.finish(requeued, "preempted")
    fleet.lose(lost)
    usage = usage_of(fleet)
    assert (usage.n_finished, usage.n_running, usage.n_pending_retry, usage.n_started) == (1, 0, 2, 3)
    fleet.start()
    usage = usage_of(fleet)
    assert (usage.n_finished, usage.n_running, usage.n_pending_retry, usage.n_started) == (1, 1, 1, 3)


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("gpu_hours = 0.5", "gpu_hours budget exhausted (0.5)"),
        ("wall_hours = 0.5", "wall_hours budget exhausted (0.5)"),
        ("target = 2.0\ntrials = 9", "target 2 reached"),
        ("target = 1.5\ntrials = 9", "target 1.5 reached"),
        ("trials = 1", "trials budget exhausted (1)"),
    ],
)
def test_each_limit_of_the_budget_finishes_a_study(limited, limit, reason):
    fleet = limited(limit)
    attempt = fleet.start()
    fleet.execute("update hpopt.attempt set started_at = now() - interval '1 hour'")
    assert reason_of(fleet) is None
    fleet.finish(attempt, value=1.5)
    assert fleet.reserve() is None
    assert reason_of(fleet) == reason


def test_a_target_that_is_not_reached_does_not_finish_a_study(limited):
    fleet = limited("target = 1.0\ntrials = 9")
    fleet.finish(fleet.start(), value=1.5)
    assert reason_of(fleet) is None
    assert fleet.reserve() is not None


def test_a_study_with_a_trial_to_be_retried_has_not_finished(limited):
    fleet = limited("trials = 2")
    finished, requeued = fleet.start(), fleet.start()
    fleet.finish(finished, value=1.5)
    fleet.finish(requeued, "preempted")
    assert reason_of(fleet) is None
    fleet.finish(fleet.start(), value=1.0)
    assert reason_of(fleet) == "trials budget exhausted (2)"


def test_trials_beyond_a_lowered_budget_still_finish(limited, database):
    fleet = limited("trials = 3")
    finished, requeued, running = (fleet.start() for _ in range(3))
    fleet.finish(finished, value=1.5)
    fleet.finish(requeued, "preempted")
    source = parse_study_file(fleet.study.text.replace("trials = 3", "trials = 1"), "limits.toml")
    fleet.study = studies.create_study(database, source)
    assert reason_of(fleet) is None
    fleet.finish(running, value=1.0)
    assert reason_of(fleet) is None
    fleet.finish(fleet.start(), value=1.0)
    assert reason_of(fleet) == "trials budget exhausted (1)"
    assert fleet.reserve() is None


def test_a_stopped_study_finishes_when_its_running_trials_have_ended(fleet):
    attempt = fleet.start()
    fleet.execute("update hpopt.study set state = 'stopped', state_reason = 'manually'")
    assert reason_of(fleet) is None
    fleet.finish(attempt, "pruned")
    assert reason_of(fleet) == "stopped: manually"


def test_a_budget_that_was_raised_ends_no_running_trial(database, make_fleet):
    """Workers read the file when they start; the budget that counts is that of the file in the database."""
    text = 'name = "raised"\n[budget]\ngpu_hours = 1.0\n[search_space]\nmomentum = { low = 0.8, high = 0.99 }'
    fleet = make_fleet(studies.create_study(database, parse_study_file(text, "raised.toml")))
    attempt = fleet.start()
    fleet.execute("update hpopt.attempt set started_at = now() - interval '2 hours'")
    studies.create_study(database, parse_study_file(text.replace("1.0", "9.0"), "raised.toml"))
    # An evaluation brings the hours up to date, the next one counts them.
    assert [fleet.record(attempt, step).limit_reached for step in (10, 20)] == [None, None]
    studies.create_study(database, parse_study_file(text, "raised.toml"))
    assert fleet.record(attempt, 30).limit_reached == "gpu_hours budget exhausted (1)"


def test_the_tokens_of_a_budget_are_those_of_all_trials_and_what_a_retry_repeats_counts_once(limited):
    fleet = limited("tokens = 1000")
    retried = fleet.start()
    fleet.record(retried, 40)
    fleet.lose(retried)
    again = fleet.start()
    assert fleet.record(again, 50).limit_reached is None
    assert usage_of(fleet).family_tokens == 500
    fleet.finish(again, value=1.0)
    other = fleet.start()
    assert fleet.record(other, 50).limit_reached == "tokens budget exhausted (1000)"
    fleet.finish(other, "pruned", value=1.0)
    assert fleet.reserve() is None
    assert reason_of(fleet) == "tokens budget exhausted (1000)"


def test_the_tokens_that_a_confirmation_is_expected_to_take_are_reserved(limited):
    fleet = limited("tokens = 3500\n[confirm]\ntop = 2\nseeds = 3")
    running = fleet.start()
    for attempt, step in ((fleet.start(), 25), (fleet.start(), 75)):
        fleet.record(attempt, step)
        fleet.finish(attempt, value=1.0)
    reason = "tokens budget exhausted (3500, 3k of them for the confirmation)"
    assert fleet.record(running, 1).limit_reached == reason
    fleet.finish(running, "pruned")
    assert usage_of(fleet).reserved_tokens == 3000
    assert reason_of(fleet) == reason


def test_a_grid_that_only_hours_limit_finishes_with_its_points(database, make_fleet):
    text = 'name = "grid"\n[budget]\ngpu_hours = 9\n[sampler]\nname = "grid"\n'
    space = '[search_space]\nns_steps = { low = 1, high = 2, type = "int" }\n'
    fleet = make_fleet(studies.create_study(database, parse_study_file(text + space, "grid.toml")))
    for _ in range(2):
        assert reason_of(fleet) is None
        fleet.finish(fleet.start(), value=1.0)
    assert reason_of(fleet) == "trials budget exhausted (2)"


CONFIRM = "\n[confirm]\ntop = 2\nseeds = 2"


def test_a_search_ends_when_the_hours_left_are_those_that_its_confirmation_takes(limited, database, make_fleet, fleet):
    elsewhere = fleet.start()
    fleet.execute("update hpopt.attempt set started_at = now() - interval '9 hours'")
    fleet.finish(elsewhere, value=1.0)
    fleet = limited(f"gpu_hours = 6.5{CONFIRM}")
    assert usage_of(fleet).reserved_hours == 0.0

    def finish_after_an_hour(fleet):
        attempt = fleet.start()
        fleet.execute("update hpopt.attempt set started_at = now() - interval '1 hour' where ended_at is null")
        fleet.finish(attempt, value=1.0)

    for _ in range(3):
        assert reason_of(fleet) is None
        finish_after_an_hour(fleet)
    assert usage_of(fleet).reserved_hours == pytest.approx(4.0, rel=0.01)
    assert fleet.reserve() is None
    assert reason_of(fleet) == "gpu_hours budget exhausted (6.5, 4 of them for the confirmation)"
    runs = make_fleet(confirmation.create_confirmation(database, fleet.study, fleet.study.file.confirm))
    finish_after_an_hour(runs)
    assert usage_of(runs).reserved_hours == 0.0
    assert usage_of(runs).family_hours == pytest.approx(4.0, rel=0.01)
    assert runs.reserve() is not None


def test_the_wall_hours_of_a_confirmation_are_those_of_as_many_workers_as_the_search_had(limited):
    """Two workers: a confirmation of 4 device hours takes 2."""
    study = limited(f"wall_hours = 5.0{CONFIRM}").study
    used = {"device_hours": 6.0, "reserved_hours": 4.0, "best_value": None}
    assert budget.compare(study, wall_hours=2.9, **{**used, "device_hours": 5.8}) is None
    assert budget.compare(study, wall_hours=3.0, **used).startswith("wall_hours budget exhausted")


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("gpu_hours = 1.5", "gpu_hours budget exhausted (1.5)"),
        ("wall_hours = 1.5", "wall_hours budget exhausted (1.5)"),
        ("target = 2.0\ntrials = 9", "target 2 reached"),
    ],
)
def test_an_evaluation_is_answered_with_the_limit_that_its_own_study_has_reached(limited, fleet, limit, reason):
    elsewhere = fleet.start()
    fleet.execute("update hpopt.attempt set started_at = now() - interval '9 hours'")
    fleet.finish(elsewhere, value=1.0)
    own = limited(limit)
    attempt = own.start()
    own.execute("update hpopt.attempt set started_at = now() - interval '1 hour' where ended_at is null")
    assert [own.record(attempt, step).limit_reached for step in (10, 20)] == [None, None]
    longer = own.start()
    own.execute(
        f"update hpopt.attempt set started_at = now() - interval '2 hours' where attempt_id = {longer.attempt_id}"
    )
    own.finish(longer, value=1.5)
    assert own.record(attempt, 30).limit_reached == reason
