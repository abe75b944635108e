from hpopt.analysis.budget import estimate_budget_dependence
from hpopt.analysis.trials import CurvePoint, TrialRow


def test_too_few_trials_give_a_reason(make_table):
    curve = tuple(CurvePoint(step=step, tokens=step, seconds=1.0, value=1.0 / step) for step in (10, 30, 90))
    row = TrialRow(trial=0, state="COMPLETE", value=1.0, params={}, curve=curve)
    budget = estimate_budget_dependence(make_table([row]), None)
    assert budget.parameters == ()
    assert budget.reason == (
        "not enough data: 10 trials are needed at the end of the schedule and at one fraction before; "
        "there are 1 at 11%, 1 at 33%, 1 at 100%"
    )
