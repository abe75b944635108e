"""Each trial is compared once at a rung, with the values that other trials had there."""

import math

import pytest

from hpopt.storage import control, queries, studies
from hpopt.storage.evaluations import Decision
from hpopt.study.reading import parse_study_file

RUNGS = "select fraction, step, value from hpopt.rung order by trial_id, fraction"


def rungs(fleet):
    return [(round(row["fraction"], 3), row["step"], row["value"]) for row in fleet.rows(RUNGS)]


def switch_pruner(fleet, study_file, name):
    """Create the study again with another pruner, as `hpopt create` does, and let the fleet use it."""
    text = study_file.replace("[search_space]", f'[pruner]\nname = "{name}"\n[search_space]')
    fleet.study = studies.create_study(fleet.database, parse_study_file(text, "tiny.toml"))


def test_a_metric_that_is_not_finite_is_recorded_as_it_is(fleet):
    fleet.record(fleet.start(), 10, math.nan, gap=-math.inf)
    (row,) = fleet.rows(
        "select (metrics ->> 'val_loss')::double precision as loss, (metrics ->> 'gap')::double precision as gap "
        "from hpopt.evaluation"
    )
    assert math.isnan(row["loss"])
    assert row["gap"] == -math.inf


def test_an_evaluation_that_is_sent_twice_is_recorded_once(fleet):
    attempt = fleet.start()
    fleet.record(attempt, 10, 3.0)
    fleet.record(attempt, 10, 3.0)
    assert [row["step"] for row in fleet.rows("select * from hpopt.evaluation")] == [10]


def test_of_a_step_that_is_evaluated_twice_the_first_value_counts_everywhere(fleet):
    """As in Optuna; transformers evaluates the last step twice."""
    attempt = fleet.start()
    fleet.record(attempt, 10, 3.0)
    fleet.record(attempt, 10, 1.0)
    (curve,) = fleet.rows("select metrics from hpopt.learning_curves")
    assert (curve["metrics"]["val_loss"], fleet.stock().trials[0].intermediate_values) == (3.0, {10: 3.0})


def test_a_retry_replaces_the_values_of_the_attempt_before_everywhere(fleet):
    attempt = fleet.start()
    fleet.record(attempt, 10, 3.0)
    fleet.lose(attempt)
    retry = fleet.start()
    fleet.record(retry, 10, 2.0)
    fleet.record(retry, 10, 1.0)
    (curve,) = fleet.rows("select metrics from hpopt.learning_curves")
    stock = fleet.stock().trials[retry.number].intermediate_values
    assert (curve["metrics"]["val_loss"], stock) == (2.0, {10: 2.0})


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("summary", ["last", "best"])
def test_the_value_of_a_run_is_its_last_evaluation_or_its_best(database, make_fleet, asha_fleet, direction, summary):
    """The first passes through its best before its first rung, the second after its last one."""
    sign = 1.0 if direction == "minimize" else -1.0
    values = [9.0, 4.0] if summary == "last" else [2.0, 1.0]
    head = f'"{summary}"\nsummary = "{summary}"\ndirection = "{direction}"'
    text = asha_fleet.study.text.replace('"rungs"', head)
    fleet = make_fleet(studies.create_study(database, parse_study_file(text, "summary.toml")))
    first, second = fleet.start(), fleet.start()
    for step, one, other in ((5, 2.0, 5.0), (10, 8.0, 6.0), (80, 9.0, 1.0), (90, 9.0, 4.0)):
        fleet.record(first, step, sign * one)
        fleet.record(second, step, sign * other)
    for attempt, last in ((first, 9.0), (second, 4.0)):
        fleet.finish(attempt, value=sign * last)
    assert [trial.value for trial in fleet.stock().trials] == [sign * value for value in values]
    at_first_rung = [row["value"] for row in fleet.rows(RUNGS) if row["step"] == 10]
    assert at_first_rung == [sign * (8.0 if summary == "last" else 2.0), sign * (6.0 if summary == "last" else 5.0)]
    assert queries.best(database, fleet.study).trial == second.number
    curves = [[point.value for point in row.curve] for row in queries.read_table(database, fleet.study).trials]
    assert curves[0] == [sign * v for v in ([2.0, 8.0, 9.0, 9.0] if summary == "last" else [2.0] * 4)]


def test_one_in_three_trials_continues_from_a_rung_and_the_defaults_always(asha_fleet):
    losses = (5.0, 4.0, 6.0, 3.0, 4.5, 2.0)
    decisions = [asha_fleet.record(asha_fleet.start(), 10, loss) for loss in losses]
    # The first trial is the default configuration; the fifth is the third best of five, of which one continues.
    assert [decision.should_prune for decision in decisions] == [False, False, True, False, True, False]
    assert decisions[2].prune_reason == "not among the best at step 10"
    assert decisions[3].prune_reason is None


def test_the_defaults_are_never_pruned(asha_fleet):
    defaults = asha_fleet.start()
    for loss in (1.0, 2.0, 3.0):
        asha_fleet.record(asha_fleet.start(), 10, loss)
    assert not defaults.can_be_pruned
    assert not asha_fleet.record(defaults, 10, 9.0).should_prune


def test_replicates_are_never_pruned(database, asha_fleet):
    """Enqueued to be compared, they would be worth nothing with another number of steps."""
    for loss in (1.0, 2.0, 3.0):
        asha_fleet.record(asha_fleet.start(), 10, loss)
    control.enqueue(database, asha_fleet.study, {"momentum": 0.9}, n_fresh_seeds=2)
    for _ in range(2):
        assert not asha_fleet.record(asha_fleet.start(), 10, 9.0).should_prune
    assert asha_fleet.record(asha_fleet.start(), 10, 9.0).should_prune


def test_a_high_value_is_better_where_the_study_maximizes(database, make_fleet, asha_fleet):
    text = asha_fleet.study.text.replace('"rungs"', '"up"\nmetric = "val_accuracy"\ndirection = "maximize"')
    fleet = make_fleet(studies.create_study(database, parse_study_file(text, "up.toml")))
    values = (0.1, 0.5, 0.4, 0.6)
    decisions = [fleet.record(fleet.start(), 10, val_accuracy=value) for value in values]
    assert [decision.should_prune for decision in decisions] == [False, False, True, False]


def test_the_optimum_with_the_longest_warmup_is_not_pruned_before_it_has_warmed_up(database, make_fleet, asha_fleet):
    """Its loss is the highest until its warmup ends at 0.3 of the schedule, and the lowest from then on."""
    space = "[search_space]\nwarmup_ratio = { low = 0.0, high = 0.3 }"
    text = asha_fleet.study.text.replace('"rungs"', '"warmup"').replace("[search_space]", space)
    fleet = make_fleet(studies.create_study(database, parse_study_file(text, "warmup.toml")))
    kept = []
    for warmup in (0.05, 0.0, 0.1, 0.2, 0.3):
        attempt = fleet.start()
        losses = {step: (9.0 if step / 90 < warmup else 1.0) - warmup for step in (10, 20, 30)}
        if not any(fleet.record(attempt, step, loss).should_prune for step, loss in losses.items()):
            kept.append(warmup)
    assert kept == [0.05, 0.1, 0.2, 0.3]
    assert {row["step"] for row in fleet.rows(RUNGS)} == {30}


def test_two_evaluations_after_the_same_rung_add_one_row(asha_fleet):
    """The second would otherwise be compared with what other trials had much earlier."""
    attempt = asha_fleet.start()
    asha_fleet.record(attempt, 50, 2.0)
    asha_fleet.record(attempt, 60, 1.0)
    assert rungs(asha_fleet) == [(0.333, 50, 2.0)]


def test_an_evaluation_before_the_first_rung_or_at_the_end_is_not_compared(asha_fleet):
    attempt = asha_fleet.start()
    asha_fleet.record(attempt, 5)
    asha_fleet.record(attempt, 90)
    assert rungs(asha_fleet) == []


def test_a_trial_that_was_past_a_rung_before_it_was_compared_there_adds_no_row(fleet, study_file):
    """With a pruner that is switched on later, its value at step 40 is no value of the rung at step 30."""
    switch_pruner(fleet, study_file, "none")
    early, late = fleet.start(), fleet.start()
    for step in (10, 20, 30):
        fleet.record(early, step)
    assert rungs(fleet) == []
    switch_pruner(fleet, study_file, "asha")
    fleet.record(late, 10, 5.0)
    decision = fleet.record(early, 40, 9.0)
    assert decision == Decision(step=40)
    assert rungs(fleet) == [(0.111, 10, 5.0)]


def test_a_trial_that_was_past_a_rung_in_an_earlier_attempt_adds_no_row(fleet, study_file):
    switch_pruner(fleet, study_file, "none")
    attempt = fleet.start()
    fleet.record(attempt, 30)
    fleet.lose(attempt)
    switch_pruner(fleet, study_file, "asha")
    retry = fleet.start()
    fleet.record(retry, 40)
    assert rungs(fleet) == []


def test_the_attempts_of_a_trial_are_compared_once(asha_fleet):
    """Optuna counts each attempt at a retried trial as a competitor."""
    attempt = asha_fleet.start()
    asha_fleet.record(attempt, 10, 1.0)
    for _ in range(2):
        asha_fleet.lose(attempt)
        attempt = asha_fleet.start()
        assert not asha_fleet.record(attempt, 10, 1.0).should_prune
    assert rungs(asha_fleet) == [(0.111, 10, 1.0)]


def test_an_attempt_that_resumes_after_a_rung_keeps_the_value_that_its_trial_had_there(asha_fleet):
    attempt = asha_fleet.start()
    asha_fleet.record(attempt, 10, 5.0)
    asha_fleet.lose(attempt)
    asha_fleet.record(asha_fleet.start(), 20, 1.0)
    assert rungs(asha_fleet) == [(0.111, 10, 5.0)]


def test_a_retry_that_reaches_a_rung_at_an_earlier_step_is_not_compared_again(asha_fleet):
    """An objective can evaluate at other steps in each attempt."""
    for loss in (2.0, 3.0, 4.0):
        asha_fleet.record(asha_fleet.start(), 10, loss)
    attempt = asha_fleet.start()
    asha_fleet.record(attempt, 15, 1.0)
    asha_fleet.lose(attempt)
    assert asha_fleet.record(asha_fleet.start(), 12, 9.0) == Decision(step=12)
    assert rungs(asha_fleet)[-1] == (0.111, 15, 1.0)


def test_a_value_that_is_not_finite_is_not_compared(asha_fleet):
    attempt = asha_fleet.start()
    for step, loss in ((10, math.nan), (30, math.inf)):
        assert not asha_fleet.record(attempt, step, loss).should_prune
    assert rungs(asha_fleet) == []


@pytest.mark.parametrize("loss", [1.0, 9.0])
def test_a_repeated_evaluation_has_the_same_decision(asha_fleet, loss):
    """The reply to the first one may have been lost, and with it the decision to prune."""
    for other in (2.0, 3.0, 4.0):
        asha_fleet.record(asha_fleet.start(), 10, other)
    attempt = asha_fleet.start()
    first = asha_fleet.record(attempt, 10, loss)
    assert first == Decision(step=10, should_prune=loss > 2.0)
    assert asha_fleet.record(attempt, 10, loss) == first
    assert asha_fleet.record(attempt, 10, loss, is_live=False) == first
    assert len(rungs(asha_fleet)) == 4


def test_a_repeated_evaluation_that_was_not_compared_is_not_compared_either(asha_fleet):
    for other in (2.0, 3.0, 4.0):
        asha_fleet.record(asha_fleet.start(), 10, other)
    attempt = asha_fleet.start()
    asha_fleet.record(attempt, 10, 1.0)
    for _ in range(2):
        assert asha_fleet.record(attempt, 20, 9.0) == Decision(step=20)
    assert len(rungs(asha_fleet)) == 4


def test_an_evaluation_renews_the_heartbeats_of_attempt_and_worker(fleet):
    attempt = fleet.start()
    fleet.execute("update hpopt.attempt set heartbeat_at = now() - interval '1 hour'")
    fleet.execute("update hpopt.worker set heartbeat_at = now() - interval '1 hour'")
    fleet.record(attempt, 10)
    (row,) = fleet.rows(
        "select a.heartbeat_at > now() - interval '1 minute' as attempt, "
        "w.heartbeat_at > now() - interval '1 minute' as worker "
        f"from hpopt.attempt a join hpopt.worker w using (worker_id) where a.attempt_id = {attempt.attempt_id}"
    )
    assert dict(row) == {"attempt": True, "worker": True}


def test_a_replayed_evaluation_neither_renews_the_worker_nor_adds_device_time(fleet):
    """The worker of a replayed outbox has exited."""
    attempt = fleet.start()
    fleet.execute("update hpopt.attempt set started_at = now() - interval '1 hour'")
    fleet.execute("update hpopt.worker set heartbeat_at = now() - interval '1 hour'")
    fleet.record(attempt, 10, is_live=False)
    (row,) = fleet.rows(
        "select a.device_seconds, w.heartbeat_at < now() - interval '50 minutes' as is_old "
        f"from hpopt.attempt a join hpopt.worker w using (worker_id) where a.attempt_id = {attempt.attempt_id}"
    )
    assert dict(row) == {"device_seconds": 0.0, "is_old": True}


def test_tokens_and_peak_memory_are_the_highest_so_far(fleet):
    attempt = fleet.start()
    for step, peak in ((10, 2.0), (20, 3.0), (10, 1.0)):
        fleet.record(attempt, step, peak_memory_gib=peak)
    (row,) = fleet.rows("select tokens, peak_memory_gib from hpopt.attempt")
    assert dict(row) == {"tokens": 200, "peak_memory_gib": 3.0}


def test_a_paused_or_stopped_study_is_part_of_the_decision(fleet):
    attempt = fleet.start()
    fleet.execute("update hpopt.study set state = 'paused'")
    assert fleet.record(attempt, 10) == Decision(step=10, should_pause=True)
    fleet.execute("update hpopt.study set state = 'stopped'")
    decision = fleet.record(attempt, 20)
    assert decision == Decision(step=20, limit_reached="the study was stopped")
    assert decision.prune_reason == "the study was stopped at step 20"


def test_an_evaluation_just_before_a_rung_is_not_at_it(asha_fleet):
    attempt = asha_fleet.start()
    for step in (9, 10, 29, 31):
        asha_fleet.record(attempt, step, float(step))
    assert rungs(asha_fleet) == [(0.111, 10, 10.0), (0.333, 31, 31.0)]
