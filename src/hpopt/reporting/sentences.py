"""Owns what a report says in words, from the numbers of summary.py. Leaves where it is said to page and text."""

from functools import partial

from hpopt import formats
from hpopt.analysis.cost import Cost
from hpopt.analysis.insights import Insights
from hpopt.analysis.pruning import PruningCheck
from hpopt.analysis.sensitivity import ParameterSensitivity, Sensitivity
from hpopt.analysis.trials import StudyTable
from hpopt.findings.finding import list_values
from hpopt.reporting.selection import format_number
from hpopt.reporting.summary import MIN_REPLICATES, Configuration, Summary

_STATE_WORDS = {"FAIL": "failed"}
# Columns of the table of parameters.
PARAMETER_COLUMNS = ("parameter", "best value", "within noise of it", "worst / best", "PED-ANOVA", "fANOVA", "p-value")
CONFIGURATIONS_SHOWN = 10
# A measure of fit below which the curves are no more than a guess.
_WEAK_FIT = 0.3
# Chances are told in whole percents from here on.
_LEAST_P_VALUE = 0.01

_show = partial(formats.format_number, digits=3)


def tell_answer(table: StudyTable, summary: Summary) -> str:
    """Say what the best is and how far it is from the defaults, or why there is none."""
    counts = ", ".join(
        f"{n} {_STATE_WORDS.get(state, state.lower())}" for state, n in sorted(table.count_states().items())
    )
    if summary.best is None:
        return (
            f"There is no answer yet: of {_trials(len(table.trials))} none is complete ({counts or 'none is there'})."
        )
    goal = "lowest" if table.direction == "minimize" else "highest"
    sentence = (
        f"Trial {summary.best.trial} reached the {goal} {table.metric}, {format_number(summary.best.value)}, "
        f"among {_trials(len(table.trials))} ({counts})."
    )
    if summary.default is not None and summary.default.trial != summary.best.trial:
        gap = table.loss(summary.default.value) - table.loss(summary.best.value)
        sentence += f" The defaults reached {format_number(summary.default.value)}, {gap:.3g} behind."
    elif summary.default is not None:
        sentence += " These are the defaults: the search found nothing better."
    return sentence


def tell_confidence(table: StudyTable, summary: Summary) -> list[str]:
    """Say how far the answer can be trusted."""
    if not summary.configurations:
        return ["Nothing can be said before a trial is complete."]
    best, *others = summary.configurations
    sentences = [_tell_replicates(table, best)]
    if not others:
        return [*sentences, "No other configuration is complete, so there is nothing to compare it with."]
    gap = abs((best.min if table.direction == "minimize" else best.max) - _best_value(table, others[0]))
    sentences.append(f"The next best configuration (trial {others[0].trials[0]}) is {gap:.2g} behind in its best run.")
    noise = summary.insights.noise
    if noise is None:
        sentences.append("How much two runs of one configuration differ has not been measured: it may be more.")
    else:
        sentences.append(f"{_capital(noise.describe())}.")
    return sentences


def tell_what_matters(table: StudyTable, insights: Insights) -> list[str]:
    """Say which parameters matter, how good the curves are, and what else shows."""
    sensitivity = insights.sensitivity
    if not sensitivity.parameters:
        return [f"What matters cannot be said: {sensitivity.reason}."]
    measured = sensitivity.parameters
    joint = {name for pair in insights.interactions.pairs if pair.is_significant for name in pair.pair}
    idle = [each.name for each in measured if not each.is_significant]
    groups = {
        "These matter by more than chance": [each.name for each in measured if each.is_significant],
        "These matter together with another": [name for name in idle if name in joint],
        "Not distinguishable from noise with these trials": [name for name in idle if name not in joint],
    }
    sentences = [f"{words}: {list_values(names)}." for words, names in groups.items() if names]
    return [*sentences, _tell_fit(table, sensitivity)]


def tell_parameter(parameter: ParameterSensitivity) -> str:
    """Say in one line how the metric answers to a parameter."""
    parts = [f"best {_show(parameter.best)}{_tell_optimum(parameter)}"]
    if parameter.ratio is not None:
        parts.append(f"worst / best {_tell_ratio(parameter)}")
    if not parameter.is_significant:
        parts.append("by itself it may be noise")
    elif parameter.edge:
        parts.append(f"best at the {parameter.edge} end of the range")
    return "; ".join(parts)


def tell_measures(insights: Insights) -> list[str]:
    """Say what each measure of importance means, and what it leaves out."""
    told = []
    for measure in insights.importance:
        parts = [measure.reason, measure.bias_note]
        rest = " ".join(f"{_capital(part.rstrip('.'))}." for part in parts if part)
        told.append(f"{measure.method}: {measure.meaning}. {rest}".rstrip())
    return told


def tell_interactions(insights: Insights) -> str:
    """Say which parameters must be chosen together."""
    interactions = insights.interactions
    if interactions.reason is not None:
        return f"{_capital(interactions.reason)}."
    joint = [pair for pair in interactions.pairs if pair.is_significant]
    if not joint:
        return "No two parameters have to be chosen together, as far as these trials show."
    told = [f"{' and '.join(pair.pair)} ({pair.share:.0%}, {pair.low:.0%} to {pair.high:.0%})" for pair in joint]
    return f"To be chosen together, by their share of the differences with its 90% interval: {'; '.join(told)}."


def tell_budget(insights: Insights) -> str:
    """Say whether the best values depend on how long one trains."""
    budget = insights.budget
    if budget.reason is not None:
        return f"{_capital(budget.reason)}."
    drifting = [parameter.name for parameter in budget.parameters if parameter.is_budget_dependent]
    if not drifting:
        return "No best value moves with the length of training by more than chance."
    move = "move" if len(drifting) > 1 else "moves"
    return f"The best {list_values(drifting)} {move} with the length of training."


def tell_pruning(check: PruningCheck) -> str:
    """Say how often stopping early would have been wrong."""
    if check.best_pruned_share is None:
        return f"Whether stopping early is safe: {check.reason}."
    return (
        f"In a bootstrap of the trials, a pruner that keeps one in three at each rung discards the best finisher in "
        f"{check.best_pruned_share:.0%} of cases{' (of those that this pruner let finish)' if check.n_pruned else ''}."
    )


def tell_cost(table: StudyTable, cost: Cost) -> list[str]:
    """Say what the study took and what pruning spared."""
    parts = {"complete trials": cost.complete_hours, "pruned ones": cost.pruned_hours, "others": cost.other_hours}
    told = ", ".join(f"{format_hours(hours)} in {name}" for name, hours in parts.items() if hours > 0)
    sentences = [f"{format_hours(cost.device_hours)} on devices in all{f': {told}' if told else ''}."]
    if table.pruned() and cost.saved_hours is None:
        sentences.append("What pruning saved cannot be estimated: no complete trial shows the length of a whole run.")
    elif table.pruned():
        sentences.append(
            f"Stopping {_trials(len(table.pruned()))} early saved about {format_hours(cost.saved_hours or 0.0)} "
            "(the missing steps of each at its own speed)."
        )
    else:
        sentences.append("No trial was stopped early.")
    return sentences


def parameter_rows(insights: Insights) -> list[list[str]]:
    """Give the table of parameters, see PARAMETER_COLUMNS: a row each, in the order of their ratios.

    The last is how likely the trials would be if no parameter mattered.
    """
    ped_anova, fanova = insights.importance
    rows = []
    for parameter in insights.sensitivity.parameters:
        name = parameter.name
        shares = [f"{measure.shares.get(name, 0):.0%}" if measure.shares else "-" for measure in (ped_anova, fanova)]
        best = f"{_show(parameter.best)}{_tell_optimum(parameter)}{', at the edge' if parameter.edge else ''}"
        rows.append([name, best, _tell_good(parameter), _tell_ratio(parameter), *shares, _tell_p_value(parameter)])
    return rows


def configuration_rows(table: StudyTable, summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of the table of the best configurations."""
    shown = summary.configurations[:CONFIGURATIONS_SHOWN]
    names = list(dict.fromkeys(name for configuration in shown for name in configuration.params))
    rows = [
        [
            str(configuration.trials[0]),
            f"{configuration.mean:#.4g}",
            "-" if configuration.std is None else f"{configuration.std:.2g}",
            str(len(configuration.trials)),
            *(_cell(configuration.params.get(name)) for name in names),
        ]
        for configuration in shown
    ]
    return ["trial", table.metric, "std", "runs", *names], rows


def format_hours(hours: float) -> str:
    """Write device hours, short ones in minutes or seconds."""
    seconds = hours * 3600
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _tell_replicates(table: StudyTable, best: Configuration) -> str:
    n_runs = len(best.trials)
    if n_runs == 1:
        return "Not confirmed: the best configuration ran once. The best of many single runs is partly luck."
    spread = (
        f"{table.metric} from {format_number(best.min)} to {format_number(best.max)}, mean {format_number(best.mean)}"
    )
    if best.n_seeds < n_runs:
        return f"Its params ran {n_runs} times with only {best.n_seeds} different seeds: {spread}. Not confirmed."
    few = "" if best.n_seeds >= MIN_REPLICATES else f" {MIN_REPLICATES} seeds would confirm it."
    return f"Its params ran with {n_runs} seeds: {spread}.{few}"


def _tell_fit(table: StudyTable, sensitivity: Sensitivity) -> str:
    error = sensitivity.error
    if error is None:
        return ""
    weak = " The curves are little more than a guess." if error.r2 < _WEAK_FIT else ""
    n_extrapolated = sensitivity.n_extrapolated
    extrapolated = f" and the extrapolated ones of {n_extrapolated} pruned trials" if n_extrapolated else ""
    return (
        f"The curves are those of a surrogate of the final values of {error.n_trials} complete trials{extrapolated}. "
        f"On complete trials that it has not seen it is off by {_show(error.rmse)} {table.metric} and explains "
        f"{max(error.r2, 0):.0%} of the differences.{weak}"
    )


def _tell_optimum(parameter: ParameterSensitivity) -> str:
    if parameter.best_low is None or parameter.best_high is None:
        others = [level for level in parameter.best_levels if level != parameter.best]
        return f" (or {list_values(others)})" if others else ""
    return f" ({_show(parameter.best_low)} to {_show(parameter.best_high)})"


def _tell_good(parameter: ParameterSensitivity) -> str:
    if not parameter.is_ordered:
        return ", ".join(_show(level) for level in parameter.within_noise)
    low, high = parameter.within_noise
    return _show(low) if low == high else f"{_show(low)} to {_show(high)}"


def _tell_ratio(parameter: ParameterSensitivity) -> str:
    if parameter.ratio is None:
        return "-"
    interval = "" if parameter.ratio_low is None else f" ({parameter.ratio_low:.3g} to {parameter.ratio_high:.3g})"
    return f"{parameter.ratio:.3g}{interval}"


def _tell_p_value(parameter: ParameterSensitivity) -> str:
    return f"{parameter.p_value:.0%}" if parameter.p_value >= _LEAST_P_VALUE else "<1%"


def _cell(value: object) -> str:
    return "" if value is None else format_number(value) if isinstance(value, float) else str(value)


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}" if text else text


def _trials(n: int) -> str:
    return "1 trial" if n == 1 else f"{n} trials"


def _best_value(table: StudyTable, configuration: Configuration) -> float:
    return configuration.min if table.direction == "minimize" else configuration.max
