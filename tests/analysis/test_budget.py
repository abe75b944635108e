from hpopt.analysis.budget import measure_budget
from hpopt.analysis.trials import CurvePoint, TrialRow


def test_too_few_trials_give_a_reason(make_table):
    curve = tuple(CurvePoint(step=step, tokens=step, seconds=1.0, value=1.0 / step) for step in (10, 30, 90))
    budget = measure_budget(make_table([TrialRow(trial=0, state="COMPLETE", value=1.0, params={}, curve=curve)]), None)
    assert budget.parameters == ()
    assert budget.reason is not None
    assert budget.reason.startswith("not enough data: 10 trials are needed at two budgets")
    assert budget.reason.endswith("there are 1 at 11%, 1 at 33%, 1 at 100%")
