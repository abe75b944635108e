"""Pause a study whose trials fail for a reason that its configurations do not explain."""

import sqlalchemy as sa

# So many failures in a row with one reason, at different trials, pause the study unless their params explain them.
_FAILURES_THAT_PAUSE = 5
# So many where configurations fail and others, started later, do not: the sampler learns which.
_FAILURES_OF_SOME_THAT_PAUSE = 15
# The messages of PyTorch, Python, CUDA's libraries and XLA for a configuration that needs too much memory.
_OUT_OF_MEMORY = "out ?of ?memory|MemoryError|allocate memory|ALLOC_FAILED|RESOURCE_EXHAUSTED"


def pause_if_failing(connection: sa.Connection, study_id: int) -> None:
    """Pause a study after a failure if its last trials failed with one reason and no parameter explains it."""
    parameters = {
        "study_id": study_id,
        "n_failures": _FAILURES_THAT_PAUSE,
        "n_failures_of_some": _FAILURES_OF_SOME_THAT_PAUSE,
        "out_of_memory": _OUT_OF_MEMORY,
    }
    connection.execute(_PAUSE, parameters)


# Pause the study if its last failures have one reason and nothing says that their params cause them. Trials that went
# on beyond the step of the failures show that the code works; those that ended before it, such as pruned ones, could
# not have failed there and do not interrupt the series. A parameter explains the failures if it separates all
# trials with that reason from all of these: by choices that these do not have, or by values beyond all of theirs. A
# conditional one that a failed trial lacks does not. Params together, such as a high learning rate with a large batch,
# explain them too: then trials succeed that started after a first failure, and only a longer series is one that the
# sampler cannot avoid.
# Numbers in a reason differ from trial to trial. Expired heartbeats have no reason in common, and
# what is wrong with an enqueued configuration says nothing about the next one.
_PAUSE = sa.text(
    """
    with ended as (
        select a.trial_id, a.optuna_trial_id, a.outcome, a.reason, a.ended_at
        from hpopt.attempts a join hpopt.study h using (study_id)
        where a.study_id = :study_id and a.ended_at > h.state_since and a.outcome <> 'preempted'
    ), last as (
        select *, (select max(e.step) from hpopt.evaluation e where e.optuna_trial_id = ended.optuna_trial_id) as step
        from ended where outcome in ('failed', 'lost') order by ended_at desc limit :n_failures
    ), series as (
        select min(last.reason) as reason, min(regexp_replace(last.reason, '[0-9.]+', '0', 'g')) as kind
        from last
        having count(distinct last.trial_id) = :n_failures
           and count(distinct regexp_replace(last.reason, '[0-9.]+', '0', 'g')) = 1
           and bool_and(last.reason not like 'heartbeat expired%' and last.reason not like '%: enqueued, but %')
           and not bool_and(last.reason ~* :out_of_memory)
           and not exists (
               select from ended
               where outcome not in ('failed', 'lost') and ended_at >= (select min(ended_at) from last)
                 and (outcome = 'complete' or exists (
                     select from hpopt.evaluation e
                     where e.optuna_trial_id = ended.optuna_trial_id
                       and e.step > (select coalesce(max(step), -1) from last)
                 ))
           )
    ), reached as (
        select a.outcome, a.optuna_trial_id, a.started_at, a.ended_at,
               coalesce(a.outcome in ('failed', 'lost'), false)
                   and coalesce(regexp_replace(a.reason, '[0-9.]+', '0', 'g') = series.kind, false) as has_failed,
               coalesce((
                   select max(e.step) from hpopt.evaluation e where e.optuna_trial_id = a.optuna_trial_id
               ), -1) as step
        from series cross join hpopt.attempts a
        where a.study_id = :study_id and a.is_last
    ), compared as (
        select * from reached
        where has_failed
           or outcome = 'complete'
           or (outcome is distinct from 'failed' and step > (select max(step) from reached where has_failed))
    ), explained as (
        select p.param_name
        from compared c join public.trial_params p on p.trial_id = c.optuna_trial_id
        group by p.param_name
        having count(*) filter (where has_failed) = (select count(*) from reached where has_failed)
           and not array_agg(p.param_value) filter (where has_failed)
                   && array_agg(p.param_value) filter (where not has_failed)
           and (
               bool_or(p.distribution_json like '%CategoricalDistribution%')
               or min(p.param_value) filter (where has_failed) > max(p.param_value) filter (where not has_failed)
               or max(p.param_value) filter (where has_failed) < min(p.param_value) filter (where not has_failed)
           )
    ), some_fail as (
        select count(*) filter (
                   where has_failed and ended_at > greatest(succeeded.last_ended_at, h.state_since)
               ) as n_in_a_row,
               min(ended_at) filter (where has_failed) < succeeded.last_started_at as is_learnable
        from compared cross join hpopt.study h cross join (
            select max(started_at) as last_started_at, max(ended_at) as last_ended_at
            from compared where not has_failed
        ) succeeded
        where h.study_id = :study_id
        group by succeeded.last_started_at, succeeded.last_ended_at, h.state_since
    )
    update hpopt.study s
    set state = 'paused', state_since = now(),
        state_reason = :n_failures || ' trials in a row failed: ' || series.reason
    from series
    where s.study_id = :study_id and s.state = 'open' and not exists (select from explained)
      and not exists (select from some_fail where is_learnable and n_in_a_row < :n_failures_of_some)
    """
)
