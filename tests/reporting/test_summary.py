from collections.abc import Callable
from dataclasses import replace

import pytest

from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.reporting.sentences import (
    describe_answer,
    describe_budget,
    describe_confidence,
    describe_cost,
    describe_importance,
    describe_interactions,
    describe_objective,
    describe_parameter,
    describe_pruning,
    tabulate_best,
    tabulate_configurations,
    tabulate_parameters,
)
from hpopt.reporting.summary import Summary, summarize

MakeTable = Callable[..., StudyTable]
MakeTrial = Callable[..., TrialRow]


def confidence(table: StudyTable) -> str:
    return " ".join(describe_confidence(table, summarize(table)))


@pytest.mark.parametrize(("direction", "verb"), [("minimize", "Minimizing"), ("maximize", "Maximizing")])
def test_the_objective_names_direction_metric_and_function(make_table: MakeTable, direction: str, verb: str):
    assert describe_objective(make_table(direction=direction)) == f"{verb} val_loss (objective: pretrain)"


def test_the_answer_names_trial_value_and_counts(table: StudyTable, summary: Summary):
    answer = describe_answer(table, summary)
    assert answer == "Trial 27 reached the lowest val_loss, 3.2338, among 40 trials (26 complete, 1 failed, 13 pruned)."


@pytest.mark.parametrize(("direction", "best", "extreme"), [("minimize", 0, "lowest"), ("maximize", 1, "highest")])
def test_the_answer_compares_the_best_trial_with_the_defaults(
    make_table: MakeTable, make_trial: MakeTrial, direction: str, best: int, extreme: str
):
    values = [3.0, 3.5]
    rows = [make_trial(i, value=value, is_default=i != best) for i, value in enumerate(values)]
    table = make_table(*rows, direction=direction)
    answer = describe_answer(table, summarize(table))
    assert answer.startswith(f"Trial {best} reached the {extreme} val_loss, {values[best]:.4f},")
    assert answer.endswith(f"The defaults reached {values[1 - best]:.4f}, 0.5 worse.")
    assert tabulate_best(summarize(table))[0] == ["parameter", "answer", "default"]


def test_defaults_that_are_best_are_named_as_such(make_table: MakeTable, make_trial: MakeTrial):
    table = make_table(make_trial(0, value=3.0, is_default=True), make_trial(1, value=4.0))
    assert describe_answer(table, summarize(table)).endswith(
        "It has the default values: the search found no better ones."
    )


def test_single_runs_are_not_confirmed(table: StudyTable, summary: Summary):
    """The best of many noisy runs looks better than it is, and a single run cannot show it."""
    sentences = describe_confidence(table, summary)
    assert sentences[0].startswith("Not confirmed: the best configuration ran once, ")
    assert "standard deviation" in sentences[-1]


def test_replicates_are_described_with_their_range(make_table: MakeTable, make_trial: MakeTrial):
    runs = [make_trial(i, value=3.0 + i / 10, params={"x": 1}, seed=i) for i in range(3)]
    table = make_table(*runs)
    expected = "Not confirmed: the best configuration ran with 3 seeds: val_loss from 3.0000 to 3.2000, mean 3.1000."
    assert confidence(table).startswith(expected)


def test_runs_with_one_seed_are_no_replicates(make_table: MakeTable, make_trial: MakeTrial):
    """Three runs with one seed agree to the last digit and do not measure noise."""
    table = make_table(*(make_trial(i, value=3.0, params={"x": 1}, seed=42) for i in range(3)))
    assert "3 times with only 1 different seed:" in confidence(table)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_distance_to_the_next_best_is_described(make_table: MakeTable, make_trial: MakeTrial, direction: str):
    sign = 1 if direction == "minimize" else -1
    rows = [make_trial(i, value=sign * value, params={"x": i}) for i, value in enumerate([3.0, 3.25, 4.0])]
    assert "(trial 1) is 0.25 worse." in confidence(make_table(*rows, direction=direction))


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_configurations_are_compared_by_their_means(make_table: MakeTable, make_trial: MakeTrial, direction: str):
    sign = 1 if direction == "minimize" else -1
    values = [(3.0, 1, 0), (5.0, 1, 1), (3.25, 2, 0), (4.0, 2, 1)]
    rows = [make_trial(i, value=sign * v, params={"x": x}, seed=seed) for i, (v, x, seed) in enumerate(values)]
    assert "(trial 0) is 0.38 worse." in confidence(make_table(*rows, direction=direction))


def test_an_equal_configuration_is_called_equal(make_table: MakeTable, make_trial: MakeTrial):
    table = make_table(*(make_trial(i, value=3.0, params={"x": i}) for i in range(2)))
    assert "(trial 1) is as good." in confidence(table)


def test_parameters_are_significant_interacting_or_not_shown(planted: StudyTable, planted_summary: Summary):
    significant, pair, not_shown, fit = describe_importance(planted, planted_summary.insights)
    assert significant == "Significant effect (p <= 0.025): learning_rate."
    assert pair == "learning_rate and momentum interact."
    assert set(not_shown.removesuffix(".").split(": ")[1].replace(" and ", ", ").split(", ")) == {
        "warmup_ratio",
        "ns_steps",
        "weight_decay",
        "schedule",
    }
    assert fit.startswith("Curves: Gaussian process on 65 complete trials; cross-validated R2 0.")
    assert fit.endswith(" nats per token.")
    assert "learning_rate and momentum (" in describe_interactions(planted_summary.insights)


def test_a_weak_fit_is_called_unreliable(planted: StudyTable, planted_summary: Summary):
    sensitivity = planted_summary.insights.sensitivity
    weak = replace(sensitivity, error=replace(sensitivity.error, r2=-0.25), n_extrapolated=1)
    *_, fit, warning = describe_importance(planted, replace(planted_summary.insights, sensitivity=weak))
    assert "65 complete and 1 extrapolated trial; cross-validated R2 -0.25" in fit
    assert warning == "The curves are not reliable: R2 is below 0.3."


def test_optima_are_described_by_training_length(planted_summary: Summary):
    insights = planted_summary.insights
    assert describe_budget(insights) == "No optimum shifts significantly with the training length."
    shifting = tuple(replace(parameter, p_value=0.0, moved_share=1.0) for parameter in insights.budget.parameters[:2])
    shifted = replace(insights, budget=replace(insights.budget, parameters=shifting))
    assert describe_budget(shifted).startswith("The optimum shifts with the training length: ")
    assert all(parameter.name in describe_budget(shifted) for parameter in shifting)


def test_the_risk_of_pruning_names_which_trials_it_is_about(planted_summary: Summary):
    check = replace(planted_summary.insights.pruning, best_pruned_share=0.25)
    sentence = describe_pruning(check)
    assert sentence.startswith("In 25% of bootstrap resamples, a pruner that keeps one trial in three")
    assert sentence.endswith("would have pruned the best trial of those that this study's pruner let finish.")
    assert describe_pruning(replace(check, n_pruned=0)).endswith("would have pruned the best trial.")


def test_a_parameter_without_a_significant_effect_has_its_p_value_in_the_caption(planted_summary: Summary):
    parameters = {parameter.name: parameter for parameter in planted_summary.insights.sensitivity.parameters}
    p_value = parameters["ns_steps"].p_value
    assert f"no effect of its own shown by these trials (p = {p_value:.2g})" in describe_parameter(
        parameters["ns_steps"]
    )
    assert "p = " not in describe_parameter(parameters["learning_rate"])


def test_the_table_of_parameters_has_a_row_for_each(planted_summary: Summary):
    rows = {row[0]: row[1:] for row in tabulate_parameters(planted_summary.insights)}
    assert set(rows) == set(planted_summary.best.params)
    optimum, good_range, ratio, *shares, p_value = rows["learning_rate"]
    assert " to " in optimum
    assert " to " in good_range
    assert float(ratio.split()[0]) > 1
    assert [share[-1] for share in shares] == ["%", "%"]
    assert float(p_value) <= 0.025


def test_the_table_of_configurations_begins_with_those_of_the_most_seeds(make_table: MakeTable, make_trial: MakeTrial):
    values = [(3.2, 1, 0), (3.0, 2, 0), (4.0, 2, 1)]
    runs = [make_trial(i, value=value, params={"x": x}, seed=seed) for i, (value, x, seed) in enumerate(values)]
    table = make_table(*runs)
    header, rows = tabulate_configurations(table, summarize(table))
    assert header == ["trial", "val_loss", "std", "runs", "x"]
    assert rows == [["1", "3.5000", "0.71", "2", "2"], ["0", "3.2000", "-", "1", "1"]]


def test_savings_are_not_estimated_without_a_complete_trial(make_table: MakeTable, make_trial: MakeTrial):
    table = make_table(make_trial(0, state="PRUNED"))
    assert "time saved by pruning is unknown" in " ".join(describe_cost(table, summarize(table).insights.cost))


def test_device_time_is_split_by_outcome(table: StudyTable, summary: Summary):
    total, saved = describe_cost(table, summary.insights.cost)
    complete = sum(row.device_seconds for row in table.complete())
    assert total.startswith(f"{int(sum(row.device_seconds for row in table.trials)) // 60} min ")
    assert f"{int(complete) // 60} min {int(complete) % 60:02d} s in complete trials" in total
    assert saved.startswith("Pruning 13 trials saved about ")
