"""The answer of a confirmation is described with its interval, its rivals and the optimism of the search."""

from dataclasses import replace

from hpopt.analysis.answer import Answer, AnswerKind, ConfirmedCandidate
from hpopt.findings.trials import find_tie
from hpopt.reporting.confirmation import describe_confirmation, describe_kind, tabulate_candidates
from hpopt.reporting.markdown import render_text
from hpopt.reporting.summary import summarize


def candidate(trial: int, mean: float, *, is_tied: bool) -> ConfirmedCandidate:
    return ConfirmedCandidate(
        params={"x": trial},
        trial=trial,
        search_value=mean - 0.02,
        values=(mean - 0.01, mean, mean + 0.01),
        mean=mean,
        low=mean - 0.03,
        high=mean + 0.03,
        is_tied=is_tied,
        device_seconds=60.0,
    )


CONFIRMED = Answer(
    kind=AnswerKind.CONFIRMED,
    trial=4,
    optimism=0.02,
    noise_std=0.01,
    candidates=(candidate(4, 3.0, is_tied=True), candidate(2, 3.2, is_tied=False)),
    test_metrics={"test_loss": 3.1},
)
TIE = replace(
    CONFIRMED,
    kind=AnswerKind.TIE,
    trial=2,
    candidates=(candidate(4, 3.0, is_tied=True), candidate(2, 3.01, is_tied=True), candidate(7, 3.5, is_tied=False)),
)


def test_a_confirmed_answer_has_its_interval_and_the_optimism_of_the_search():
    assert describe_kind(CONFIRMED, "val_loss") == "confirmed val_loss 3.0000 (2.9700 to 3.0300) over 3 seeds"
    text = " ".join(describe_confirmation(CONFIRMED, "val_loss"))
    assert "the configuration of trial 4 is better than its rivals beyond the noise" in text
    assert "The best single run of the search was 0.02 better than the mean of its configuration." in text
    assert text.endswith("On the held-out test split, which no other run read: test_loss 3.1000.")


def test_a_tie_names_its_members_and_the_recommended_one():
    assert describe_kind(TIE, "val_loss").startswith("tie of 2 configurations, val_loss 3.0100 (2.9800 to 3.0400)")
    assert "do not tell the configurations of trials 4 and 2 apart. Trial 2 is recommended" in " ".join(
        describe_confirmation(TIE, "val_loss")
    )
    assert [row[-1] for row in tabulate_candidates(TIE)] == ["tied", "tied, recommended", ""]


def test_a_confirmed_answer_is_no_tie_and_a_tie_is_one(make_table, make_trial):
    """Without a confirmation the two trials would be a tie: their noise is unknown."""
    table = make_table(make_trial(4, value=3.0, params={"x": 4}), make_trial(2, value=3.0, params={"x": 2}))
    assert list(find_tie(replace(table, answer=CONFIRMED), None)) == []
    (tie,) = find_tie(replace(table, answer=TIE), None)
    assert tie.evidence["rivals"] == [4]
    assert f"`hpopt confirm {table.name} --seeds 4`" in tie.remedy


def test_the_report_answers_with_the_confirmed_configuration(make_table, make_trial):
    rows = [make_trial(4, value=2.98, params={"x": 4}), make_trial(2, value=2.9, params={"x": 2})]
    table = replace(make_table(*rows), answer=CONFIRMED)
    text = render_text(table, summarize(table), {})
    assert "Confirmed val_loss 3.0000 (2.9700 to 3.0300) over 3 seeds: the configuration of trial 4 of 2" in text
    assert "| x | 4 |" in text
    assert "| 4 | 3.0000 | 2.9700 to 3.0300 | 3 | 2.9800 | confirmed |" in text
