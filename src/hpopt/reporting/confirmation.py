"""Describe the answer of a confirmation in sentences and table rows."""

from hpopt.analysis.answer import Answer, AnswerKind, ConfirmedCandidate
from hpopt.formats import format_count, format_metric, format_number, join_words

CANDIDATE_COLUMNS = ("trial", "mean", "95% interval", "seeds", "search", "answer")


def describe_kind(answer: Answer, metric: str) -> str:
    """Describe the answer in one clause: its value, interval and seeds, and whether its rivals are told apart."""
    chosen = answer.chosen
    value = f"{metric} {format_metric(chosen.mean)} ({format_interval(chosen)})"
    seeds = f"over {format_count(len(chosen.values), 'seed')}"
    if answer.kind is AnswerKind.CONFIRMED:
        return f"confirmed {value} {seeds}"
    tied = [one for one in answer.candidates if one.is_tied]
    return f"tie of {format_count(len(tied), 'configuration')}, {value} {seeds} in the recommended one"


def describe_confirmation(answer: Answer, metric: str) -> list[str]:
    """Describe in sentences what the confirmation shows, how optimistic the search was, and the test metrics."""
    chosen = answer.chosen
    n_seeds = format_count(len(chosen.values), "seed")
    if answer.kind is AnswerKind.CONFIRMED:
        first = (
            f"Confirmed: with {n_seeds}, the configuration of trial {chosen.trial} is better than its rivals beyond "
            "the noise (multiple comparison with the best, 95%)."
        )
    else:
        tied = join_words([f"{one.trial}" for one in answer.candidates if one.is_tied])
        first = (
            f"Tie: {n_seeds} each do not tell the configurations of trials {tied} apart. Trial {chosen.trial} is "
            "recommended: the most central of those that cost least."
        )
    mean = f"The mean of {metric} is {format_metric(chosen.mean)}, 95% interval {format_interval(chosen)}."
    noise = f"Runs of one configuration differ by a standard deviation of {format_number(answer.noise_std, digits=2)}."
    return [first, mean, noise, describe_optimism(answer), *_describe_test(answer)]


def describe_optimism(answer: Answer) -> str:
    """Describe how much better the best single run of the search is than the mean of its configuration."""
    size = format_number(abs(answer.optimism), digits=2)
    if answer.optimism > 0:
        return f"The best single run of the search was {size} better than the mean of its configuration."
    return f"The best single run of the search was not better than the mean of its configuration ({size} worse)."


def tabulate_candidates(answer: Answer) -> list[list[str]]:
    """Return the rows of the table of the configurations that were confirmed (CANDIDATE_COLUMNS), best first."""
    return [
        [
            str(one.trial),
            format_metric(one.mean),
            format_interval(one),
            str(len(one.values)),
            format_metric(one.search_value),
            _role(answer, one),
        ]
        for one in answer.candidates
    ]


def format_interval(one: ConfirmedCandidate) -> str:
    """Format the 95% interval of a mean."""
    return f"{format_metric(one.low)} to {format_metric(one.high)}"


def _role(answer: Answer, one: ConfirmedCandidate) -> str:
    if answer.kind is AnswerKind.CONFIRMED:
        return "confirmed" if one.is_tied else ""
    if one.trial == answer.trial:
        return "tied, recommended"
    return "tied" if one.is_tied else ""


def _describe_test(answer: Answer) -> list[str]:
    metrics = answer.test_metrics or {}
    values = [f"{name} {format_metric(value)}" for name, value in metrics.items()]
    return [f"On the held-out test split, which no other run read: {join_words(values)}."] if values else []
