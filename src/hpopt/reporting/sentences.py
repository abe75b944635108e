"""Describe the numbers of a report in sentences and table rows, for the page, report.md and the dashboard's notes."""

from collections.abc import Iterator

from hpopt.analysis.cost import SECONDS_PER_HOUR, Cost
from hpopt.analysis.dependence import SIGNIFICANCE_LEVEL
from hpopt.analysis.insights import ConditionalInsights, Insights
from hpopt.analysis.pruning import PruningCheck
from hpopt.analysis.sensitivity import ParameterSensitivity, Sensitivity
from hpopt.analysis.trials import StudyTable
from hpopt.formats import format_count, format_duration, format_metric, format_number, format_percent, join_words
from hpopt.hyperparameters import Scalar
from hpopt.reporting.confirmation import describe_confirmation, describe_kind
from hpopt.reporting.selection import find_metric_unit
from hpopt.reporting.summary import Configuration, Summary
from hpopt.search.direction import Direction

PARAMETER_COLUMNS = ("parameter", "model's optimum", "good range", "max / min", "PED-ANOVA", "fANOVA", "p-value")
N_CONFIGURATIONS = 10
_STATE_WORDS = {"FAIL": "failed"}
# With a lower R2 the curves say little about the metric.
_WEAK_FIT = 0.3


def describe_objective(table: StudyTable) -> str:
    """Describe what the study optimizes."""
    verb = "Minimizing" if table.direction is Direction.MINIMIZE else "Maximizing"
    return f"{verb} {table.metric} (objective: {table.objective})"


def describe_answer(table: StudyTable, summary: Summary) -> str:
    """Describe the best trial and its distance from the defaults, or why there is none."""
    external = table.external.describe()
    return _describe_best(table, summary) + (f" {_capitalize(external)}." if external else "")


def describe_confidence(table: StudyTable, summary: Summary) -> list[str]:
    """Describe how far the best configuration can be trusted."""
    if table.answer is not None:
        return describe_confirmation(table.answer, table.metric)
    if not summary.configurations:
        return ["No trial is complete yet."]
    best, *others = summary.configurations
    sentences = [_describe_replicates(table, best)]
    if not others:
        return [*sentences, "No other configuration is complete, so there is nothing to compare it with."]
    gap = _level(table, others[0]) - _level(table, best)
    distance = f"is {format_number(abs(gap), digits=2)} {'worse' if gap > 0 else 'better'}" if gap else "is as good"
    sentences.append(f"The next best configuration (trial {others[0].trials[0]}) {distance}.")
    noise = summary.insights.noise
    if noise is None:
        sentences.append("The run-to-run standard deviation is unknown; it may be larger than this difference.")
    else:
        sentences.append(f"{_capitalize(noise.describe())}.")
    return sentences


def describe_importance(table: StudyTable, insights: Insights) -> list[str]:
    """Describe which parameters have an effect, and how well the model of the metric fits."""
    sensitivity = insights.sensitivity
    conditional = [_describe_part(part) for part in insights.conditional]
    if not sensitivity.parameters:
        return [f"Parameter importance is not available: {sensitivity.reason}.", *conditional]
    pairs = [pair.pair for pair in insights.interactions.significant]
    paired = {name for pair in pairs for name in pair}
    significant = [parameter.name for parameter in sensitivity.parameters if parameter.is_significant]
    not_shown = [
        parameter.name
        for parameter in sensitivity.parameters
        if not parameter.is_significant and parameter.name not in paired
    ]
    sentences = []
    if significant:
        sentences.append(f"Significant effect (p <= {SIGNIFICANCE_LEVEL}): {join_words(significant)}.")
    sentences += [f"{join_words(pair)} interact." for pair in pairs]
    if not_shown:
        sentences.append(f"Effect not shown by these trials: {join_words(not_shown)}.")
    return [*sentences, *conditional, *_describe_fit(table, sensitivity)]


def _describe_part(part: ConditionalInsights) -> str:
    names = join_words(part.parameters)
    if part.reason is not None:
        return f"No effect of {names} can be estimated, where {part.where}: {part.reason}."
    return f"The effect of {names} is that where {part.where}."


def describe_parameter(parameter: ParameterSensitivity) -> str:
    """Describe in one line how the metric depends on a parameter."""
    parts = [f"where {parameter.where}"] * bool(parameter.where) + [f"model's optimum {_format_optimum(parameter)}"]
    if parameter.ratio is not None:
        parts.append(f"max / min {_format_ratio(parameter)}")
    if not parameter.is_significant:
        parts.append(f"no effect of its own shown by these trials (p = {format_number(parameter.p_value, digits=2)})")
    elif parameter.edge:
        parts.append(f"optimum at the {parameter.edge} end of the range")
    return "; ".join(parts)


def describe_measures(insights: Insights) -> list[str]:
    """Describe what each measure of importance means, and what it leaves out."""
    sentences = []
    for measure in insights.importance:
        parts = [part.rstrip(".") for part in (measure.reason, measure.bias_note) if part]
        sentences.append(
            " ".join([f"{measure.method}: {measure.meaning}.", *(f"{_capitalize(part)}." for part in parts)])
        )
    return sentences


def describe_interactions(insights: Insights) -> str:
    """Describe which pairs of parameters interact."""
    interactions = insights.interactions
    if interactions.reason is not None:
        return f"{_capitalize(interactions.reason)}."
    pairs = [
        f"{join_words(pair.pair)} ({format_percent(pair.share)}, {format_percent(pair.low)} to "
        f"{format_percent(pair.high)})"
        for pair in interactions.significant
    ]
    if not pairs:
        return "No interaction is shown by these trials."
    return f"Choose together (share of the variance, 90% interval): {'; '.join(pairs)}."


def describe_budget(insights: Insights) -> str:
    """Describe whether the optima depend on the training length."""
    budget = insights.budget
    if budget.reason is not None:
        return f"{_capitalize(budget.reason)}."
    shifting = [parameter.name for parameter in budget.parameters if parameter.is_budget_dependent]
    if not shifting:
        return "No optimum shifts significantly with the training length."
    return f"The optimum shifts with the training length: {join_words(shifting)}."


def describe_pruning(check: PruningCheck) -> str:
    """Describe how often a pruner would have pruned the best trial."""
    if check.best_pruned_share is None:
        return f"The risk of pruning the best trial is unknown: {check.reason}."
    condition = " of those that this study's pruner let finish" if check.n_pruned else ""
    return (
        f"In {format_percent(check.best_pruned_share)} of bootstrap resamples, a pruner that keeps one trial in three "
        f"at each rung would have pruned the best trial{condition}."
    )


def describe_cost(table: StudyTable, cost: Cost) -> list[str]:
    """Describe the device time of the study, and what pruning saved."""
    parts = {"complete trials": cost.complete_hours, "pruned trials": cost.pruned_hours, "others": cost.other_hours}
    shares = ", ".join(f"{format_hours(hours)} in {name}" for name, hours in parts.items() if hours > 0)
    sentences = [f"{format_hours(cost.device_hours)} of device time in total{f': {shares}' if shares else ''}."]
    n_pruned = len(table.pruned())
    if not n_pruned:
        sentences.append("No trial was pruned.")
    elif cost.saved_hours is None:
        sentences.append("The time saved by pruning is unknown: no complete trial shows the length of a full run.")
    else:
        sentences.append(
            f"Pruning {format_count(n_pruned, 'trial')} saved about {format_hours(cost.saved_hours)} of device time "
            "(estimate: the remaining steps of each at its own speed)."
        )
    return sentences


def format_hours(hours: float) -> str:
    """Format device hours as a duration."""
    return format_duration(hours * SECONDS_PER_HOUR)


def tabulate_best(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of the answer, beside the defaults if they ran."""
    header = ["parameter", "answer"]
    rows = [[name, format_number(value)] for name, value in (summary.best.params if summary.best else {}).items()]
    if summary.default is not None:
        header.append("default")
        rows = [[*row, format_number(summary.default.params.get(row[0]))] for row in rows]
    return header, rows


def tabulate_parameters(insights: Insights) -> list[list[str]]:
    """Return the rows of the table of parameters (PARAMETER_COLUMNS), the largest ratio of the metric first."""
    rows = []
    measured_in = {name: part.importance for part in insights.conditional for name in part.parameters}
    for parameter in insights.sensitivity.parameters:
        measures = measured_in.get(parameter.name, insights.importance)
        shares = [
            format_percent(measure.shares.get(parameter.name, 0.0)) if measure.shares else "-" for measure in measures
        ]
        optimum = f"{_format_optimum(parameter)}{', at the edge' if parameter.edge else ''}"
        numbers = [_format_ratio(parameter), *shares, format_number(parameter.p_value, digits=2)]
        name = f"{parameter.name}, where {parameter.where}" if parameter.where else parameter.name
        rows.append([name, optimum, _format_good_range(parameter), *numbers])
    return rows


def tabulate_configurations(table: StudyTable, summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of the best configurations."""
    shown = summary.configurations[:N_CONFIGURATIONS]
    names = list(dict.fromkeys(name for configuration in shown for name in configuration.params))
    rows = [
        [
            str(configuration.trials[0]),
            format_metric(configuration.mean),
            format_number(configuration.std, digits=2),
            str(len(configuration.trials)),
            *(format_number(configuration.params.get(name, "")) for name in names),
        ]
        for configuration in shown
    ]
    return ["trial", table.metric, "std", "runs", *names], rows


def _describe_best(table: StudyTable, summary: Summary) -> str:
    counts = ", ".join(
        f"{n} {_STATE_WORDS.get(state, state.lower())}" for state, n in sorted(table.count_states().items())
    )
    if summary.best is None or summary.best.value is None:
        return f"No result yet: no trial is complete ({counts or 'no trials'})."
    extreme = "lowest" if table.direction is Direction.MINIMIZE else "highest"
    if table.answer is not None:
        kind = _capitalize(describe_kind(table.answer, table.metric))
        sentence = f"{kind}: the configuration of trial {table.answer.trial} of {len(table.trials)} ({counts})."
    else:
        sentence = (
            f"Trial {summary.best.trial} reached the {extreme} {table.metric}, {format_metric(summary.best.value)}, "
            f"among {format_count(len(table.trials), 'trial')} ({counts})."
        )
    if summary.default is None or summary.default.value is None:
        return sentence
    if summary.default.trial == summary.best.trial:
        return f"{sentence} It has the default values: the search found no better ones."
    gap = table.loss(summary.default.value) - table.loss(summary.best.value)
    reached = f"The defaults reached {format_metric(summary.default.value)}"
    return f"{sentence} {reached}, {format_number(gap, digits=3)} worse."


def _describe_replicates(table: StudyTable, best: Configuration) -> str:
    n_runs = len(best.trials)
    confirm = f"`hpopt confirm {table.name}` runs the best configurations again with fresh seeds."
    if n_runs == 1:
        return (
            "Not confirmed: the best configuration ran once, and the best of many single runs is partly luck. "
            f"{confirm}"
        )
    values = (
        f"{table.metric} from {format_metric(best.min)} to {format_metric(best.max)}, mean {format_metric(best.mean)}"
    )
    if best.n_seeds < n_runs:
        seeds = format_count(best.n_seeds, "different seed")
        return f"Not confirmed: the best configuration ran {n_runs} times with only {seeds}: {values}. {confirm}"
    return f"Not confirmed: the best configuration ran with {n_runs} seeds: {values}. {confirm}"


def _describe_fit(table: StudyTable, sensitivity: Sensitivity) -> Iterator[str]:
    error = sensitivity.error
    if error is None:
        return
    n_extrapolated = sensitivity.n_extrapolated
    trials = f"{error.n_trials} complete"
    trials += f" and {format_count(n_extrapolated, 'extrapolated trial')}" if n_extrapolated else " trials"
    unit = find_metric_unit(table)
    rmse = f"{format_number(error.rmse, digits=2)}{f' {unit}' if unit else ''}"
    yield f"Curves: Gaussian process on {trials}; cross-validated R2 {format_number(error.r2, digits=2)}, RMSE {rmse}."
    if error.r2 < _WEAK_FIT:
        yield f"The curves are not reliable: R2 is below {_WEAK_FIT}."


def _format_value(value: Scalar | None) -> str:
    return format_number(value, digits=3)


def _format_optimum(parameter: ParameterSensitivity) -> str:
    best = _format_value(parameter.best)
    if parameter.best_low is not None and parameter.best_high is not None:
        return f"{best} ({_format_value(parameter.best_low)} to {_format_value(parameter.best_high)})"
    others = [_format_value(level) for level in parameter.best_levels if level != parameter.best]
    return f"{best} (or {join_words(others)})" if others else best


def _format_good_range(parameter: ParameterSensitivity) -> str:
    if not parameter.is_ordered:
        return ", ".join(_format_value(level) for level in parameter.within_noise)
    low, high = parameter.within_noise
    return _format_value(low) if low == high else f"{_format_value(low)} to {_format_value(high)}"


def _format_ratio(parameter: ParameterSensitivity) -> str:
    if parameter.ratio is None:
        return "-"
    ratio = format_number(parameter.ratio, digits=3)
    if parameter.ratio_low is None:
        return ratio
    return f"{ratio} ({_format_value(parameter.ratio_low)} to {_format_value(parameter.ratio_high)})"


def _capitalize(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _level(table: StudyTable, configuration: Configuration) -> float:
    """Return the loss by which a configuration is ranked: of its mean over seeds, or of its best run with one seed."""
    if configuration.n_seeds > 1:
        return table.loss(configuration.mean)
    return min(table.loss(configuration.min), table.loss(configuration.max))
