"""Owns what an attempt ends as, and what its end costs the study: SQL that ending and reaping share.

Leaves saying that it ends to attempts.py and reaping.py.
"""

MAX_GOES_WITHOUT_PROGRESS = 3

# How many goes in a row, this one included, brought the trial no further; a preempted one was never the trial's fault.
_GOES_WITHOUT_PROGRESS = """
    (
        select count(*) from hpopt.goes later
        where later.first_trial_id = a.first_trial_id and later.outcome is distinct from 'preempted'
          and later.go > coalesce((
              select further.go
              from hpopt.goes further
              cross join lateral (
                  select max(e.step) as step from hpopt.evaluation e where e.trial_id = further.trial_id
              ) reached
              where further.first_trial_id = a.first_trial_id and reached.step is not null
              order by reached.step desc, further.go limit 1
          ), 0)
    )
"""

# What the attempts of `ended` cost is added to their study.
CHARGE = """
    update hpopt.study s set device_seconds = s.device_seconds + e.cost
    from (select study_id, sum(device_seconds) as cost from ended group by study_id) e
    where s.study_id = e.study_id
"""


def ended_as(*, kind: str, reason: str, too_often: str) -> str:
    """Give the assignments of outcome and reason for an attempt `a` at a trial `t`; the arguments are SQL.

    A trial that was ended in Optuna's tables by other means has ended as it did there, whatever is said; one that is
    lost `:n_goes` times in a row without progress has failed.
    """
    is_lost_too_often = f"{kind} = 'lost' and {_GOES_WITHOUT_PROGRESS} >= :n_goes"
    return f"""
        outcome = case
            when t.state = 'COMPLETE' then 'complete'
            when t.state = 'PRUNED' then 'pruned'
            when t.state = 'FAIL' or {is_lost_too_often} then 'failed'
            else {kind}
        end,
        reason = case
            when t.state <> 'RUNNING' then 'ended outside of hpopt'
            when {is_lost_too_often} then {too_often}
            else {reason}
        end
    """
