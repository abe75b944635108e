"""Define the views, functions and roles of schema `hpopt`, which every upgrade replaces.

The views are the public interface of the database: columns are added at the end, never renamed or removed. The
functions are statements that several modules share.
"""

import hashlib

from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from hpopt.storage.tables import SCHEMA, metadata

ROLES = ("hpopt_owner", "hpopt_worker", "hpopt_reader")

# The attempts at each trial. Everything that counts, compares or shows trials reads this view.
_ATTEMPTS = """
create or replace view hpopt.attempts as
select a.study_id, a.trial_id, a.attempt_number, a.optuna_trial_id, a.attempt_id, a.worker_id, a.seed, a.config,
       a.outcome, a.reason, a.started_at, a.ended_at, a.retry_at, a.heartbeat_at, a.device_seconds, a.tokens,
       a.peak_memory_gib,
       not exists (
           select from hpopt.attempt later
           where later.trial_id = a.trial_id and later.attempt_number > a.attempt_number
       ) as is_last,
       a.is_requeued,
       a.folder,
       a.arm,
       hpopt.parent(a.study_id) as parent,
       a.derived
from hpopt.attempt a
"""

# By how much a trial violates its constraints; trials without constraints have no row.
_CONSTRAINT_VIOLATIONS = """
create or replace view hpopt.constraint_violations as
select trial_id as optuna_trial_id, sum(greatest(hpopt.number(value_json), 0)) as violation
from public.trial_system_attributes
where key like 'constraints:%'
group by trial_id
"""

# Of each trial the last attempt is shown, with the cost of all of them. Trials that stock Optuna ran are shown as they
# are.
_TRIALS = """
create or replace view hpopt.trials as
select s.study_name,
       t.number as trial,
       case when g.is_requeued then 'WAITING' else t.state::text end as state,
       hpopt.finite_value(v.value, v.value_type::text) as value,
       coalesce((
           select c.violation from hpopt.constraint_violations c where c.optuna_trial_id = t.trial_id
       ), 0) <= 0 as feasible,
       coalesce((
           select jsonb_object_agg(p.param_name, hpopt.param_value(p.param_value, p.distribution_json))
           from public.trial_params p
           where p.trial_id = t.trial_id and p.param_name is not null
       ), '{}'::jsonb) as params,
       g.seed,
       coalesce(a.n_attempts, 0) as n_attempts,
       coalesce(a.tokens, 0) as tokens,
       coalesce(a.device_seconds, 0) as device_seconds,
       a.peak_memory_gib,
       coalesce(a.started_at, hpopt.utc(t.datetime_start)) as started_at,
       coalesce(g.ended_at, hpopt.utc(t.datetime_complete)) as finished_at,
       g.outcome,
       g.reason,
       g.config,
       coalesce(g.trial_id, t.trial_id) as trial_id,
       t.trial_id as optuna_trial_id,
       t.study_id,
       w.host,
       g.folder,
       g.arm,
       hpopt.parent(t.study_id) as parent,
       coalesce(g.derived, '{}'::jsonb) as derived
from public.trials t
join public.studies s on s.study_id = t.study_id
left join hpopt.attempts g on g.optuna_trial_id = t.trial_id
left join hpopt.worker w on w.worker_id = g.worker_id
left join lateral (
    select count(*)::int as n_attempts, min(every.started_at) as started_at, max(every.tokens) as tokens,
           sum(every.device_seconds) as device_seconds, max(every.peak_memory_gib) as peak_memory_gib
    from hpopt.attempt every
    where every.trial_id = g.trial_id
) a on g.trial_id is not null
left join public.trial_values v on v.trial_id = t.trial_id and v.objective = 0
where g.is_last is not false
"""

_LEADERBOARD = """
create or replace view hpopt.leaderboard as
select t.study_name,
       rank() over (
           partition by t.study_id, t.study_name
           order by case when d.direction = 'MAXIMIZE' then -t.value else t.value end
       ) as rank,
       t.trial, t.value, t.params, t.seed, t.tokens, t.device_seconds, t.finished_at, t.study_id,
       t.optuna_trial_id, t.derived
from hpopt.trials t
join public.study_directions d on d.study_id = t.study_id and d.objective = 0
where t.state = 'COMPLETE' and t.feasible and t.value is not null
"""

# The answer of each family, under the name of its root: that of its confirmation, else the best configuration of the
# search by its mean over seeds. Of those with the most seeds, so that a single run that is better by chance does not
# replace one that was repeated. `trial` is its best run in the search, value_low and value_high bound the 95% interval
# of the mean. avg() fails for values above 1e154, whose squares it adds. As in hpopt.leaderboard and
# hpopt.learning_curves, a query about one study reads only that study because trials are grouped by study_name too.
# Of a comparison it is the better arm, else the first, once all runs have finished; each arm where their data differ.
_BEST_PARAMS = """
create or replace view hpopt.best_params as
(select distinct on (configurations.study_id, configurations.study_name)
       configurations.study_name,
       coalesce(answer.value, case when configurations.n_seeds > 1 then mean else best.value end) as value,
       coalesce(answer.value_low, mean - half_width) as value_low,
       coalesce(answer.value_high, mean + half_width) as value_high,
       coalesce(answer.n_seeds, configurations.n_seeds) as n_seeds,
       case when answer.kind is null then 'search' else 'confirm' end as source,
       coalesce(answer.params, configurations.params) || coalesce(confirmed.derived, best.derived) as params,
       coalesce(answer.trial, best.trial) as trial,
       coalesce(answer.answered_at, best.finished_at) as finished_at,
       case when answer.kind is null then best.host else kept.host end as host,
       case when answer.kind is null then best.folder else kept.folder end as folder,
       coalesce(answer.kind, 'unconfirmed') as answer,
       answer.optimism,
       answer.noise_std,
       answer.candidates,
       answer.test_metrics,
       null::text as arm
from (
    select t.study_id, t.study_name, t.params, d.sign, greatest(count(distinct t.seed), 1)::int as n_seeds,
           sum(t.value / 4096) / count(*) * 4096 as mean,
           case when count(distinct t.seed) > 1 then
               hpopt.t_quantile(count(distinct t.seed)::int - 1) / sqrt(count(distinct t.seed))
               -- The square of a larger value is not finite.
               * stddev_samp(case when abs(t.value) < 1e150 then t.value end)
           end as half_width,
           (array_agg(t.optuna_trial_id order by d.sign * t.value, t.trial))[1] as optuna_trial_id
    from hpopt.trials t
    join (
        select study_id, case direction when 'MAXIMIZE' then -1 else 1 end as sign
        from public.study_directions where objective = 0
    ) d on d.study_id = t.study_id
    where t.state = 'COMPLETE' and t.feasible and t.value is not null
      and not exists (
          select from hpopt.study h
          where h.study_id = t.study_id and (h.root_id <> h.study_id or h.role = 'compare')
      )
    group by t.study_id, t.study_name, t.params, d.sign
) configurations
cross join lateral (
    select t.value, t.trial, t.finished_at, t.host, t.folder, t.derived
    from hpopt.trials t where t.optuna_trial_id = configurations.optuna_trial_id
) best
left join hpopt.answer answer on answer.study_id = configurations.study_id
left join lateral (
    select t.derived from hpopt.trials t where t.study_id = answer.study_id and t.trial = answer.trial
) confirmed on true
left join lateral (
    select t.host, t.folder
    from hpopt.trials t
    where t.study_id = answer.confirmation_id and t.params = answer.params and t.folder is not null
    order by t.seed limit 1
) kept on true
order by configurations.study_id, configurations.study_name, configurations.n_seeds desc,
         sign * case when configurations.n_seeds > 1 then mean else best.value end, best.trial)
union all
select s.study_name, a.value, a.value_low, a.value_high, a.n_seeds, 'compare', a.params, a.trial, a.answered_at,
       kept.host, kept.folder, a.kind, a.optimism, a.noise_std, a.candidates, a.test_metrics, a.arm
from hpopt.answer a
join public.studies s using (study_id)
left join lateral (
    select t.host, t.folder
    from hpopt.trials t
    where t.study_id = a.study_id and t.arm = a.arm and t.folder is not null
    order by t.seed limit 1
) kept on true
where a.arm <> ''
"""

# A retry repeats the steps since the checkpoint: of each step, the evaluation of the last attempt is shown.
_LEARNING_CURVES = """
create or replace view hpopt.learning_curves as
select distinct on (t.study_id, t.study_name, t.trial_id, e.step)
       t.study_name, t.trial, e.step, e.tokens, e.seconds, e.metrics, e.recorded_at, t.arm, t.parent
from hpopt.trials t
join hpopt.attempt a on a.trial_id = t.trial_id
join hpopt.evaluation e on e.optuna_trial_id = a.optuna_trial_id
order by t.study_id, t.study_name, t.trial_id, e.step, a.attempt_number desc
"""

_FLEET = """
create or replace view hpopt.fleet as
select s.study_name,
       w.worker_id, w.host, w.pid, w.device, w.engine, w.job,
       w.started_at,
       w.heartbeat_at,
       w.stopped_at,
       w.stop_reason,
       extract(epoch from now() - w.heartbeat_at)::double precision as seconds_since_heartbeat,
       t.number as trial,
       a.attempt_number,
       a.started_at as trial_started_at,
       a.tokens,
       (select sum(own.device_seconds) from hpopt.attempt own where own.worker_id = w.worker_id) as device_seconds,
       w.stopped_at is null and w.heartbeat_at < now() - make_interval(secs => w.stale_after_s) as is_stale,
       e.step,
       hpopt.number(e.metrics ->> 'tokens_per_second') as tokens_per_second
from hpopt.worker w
join public.studies s on s.study_id = w.study_id
left join hpopt.attempt a on a.worker_id = w.worker_id and a.ended_at is null
left join public.trials t on t.trial_id = a.optuna_trial_id
left join lateral (
    select last.step, last.metrics from hpopt.evaluation last where last.optuna_trial_id = a.optuna_trial_id
    order by last.step desc limit 1
) e on true
"""

_FINDINGS = """
create or replace view hpopt.findings as
select s.study_name, f.position, f.code, nullif(f.subject, '') as subject, f.message, f.evidence, f.remedy, f.found_at,
       f.severity
from hpopt.finding f join public.studies s using (study_id)
"""

# What a study has spent of the limits of its budget. A query pays for the columns that it selects. The wall hours
# are those of all attempts without their overlaps; a running or lost one worked until its last heartbeat.
_BUDGET_USAGE = """
create or replace view hpopt.budget_usage as
select s.study_id,
       (
           s.device_seconds + coalesce((
               select sum(a.device_seconds) from hpopt.attempt a where a.study_id = s.study_id and a.ended_at is null
           ), 0)
       ) / 3600 as device_hours,
       coalesce((
           select sum(extract(epoch from upper(at_work) - lower(at_work)))::double precision / 3600
           from (
               select unnest(range_agg(tstzrange(
                          a.started_at,
                          greatest(a.started_at, case when a.outcome <> 'lost' then a.ended_at else a.heartbeat_at end)
                      ))) as at_work
               from hpopt.attempt a where a.study_id = s.study_id
           ) periods
       ), 0) as wall_hours,
       (
           select case d.direction when 'MAXIMIZE' then max(f.value) else min(f.value) end
           from public.trials t
           join public.trial_values v on v.trial_id = t.trial_id and v.objective = 0
           cross join lateral (select hpopt.finite_value(v.value, v.value_type::text) as value) f
           join public.study_directions d on d.study_id = t.study_id and d.objective = 0
           where t.study_id = s.study_id and t.state = 'COMPLETE' and coalesce((
               select c.violation from hpopt.constraint_violations c where c.optuna_trial_id = t.trial_id
           ), 0) <= 0
           group by d.direction
       ) as best_value,
       coalesce((
           select sum(trained.tokens)::bigint
           from (
               select max(a.tokens) as tokens from hpopt.attempt a where a.study_id = s.study_id group by a.trial_id
           ) trained
       ), 0) as tokens
from hpopt.study s
"""

# What a comparison shows of each arm against the first, once all runs have finished: a verdict, or the reason why there
# is none.
_COMPARISONS = """
create or replace view hpopt.comparisons as
select s.study_name, c.baseline, c.treatment, c.n, c.difference, c.low, c.high, c.p_value, c.permutation_p_value,
       c.detectable, c.verdict, c.needed_seeds_low, c.needed_seeds_high, c.reason, c.compared_at, c.position
from hpopt.comparison c join public.studies s using (study_id)
"""

_CHANGES = """
create or replace view hpopt.changes as
select s.study_name, c.changed_at, c.changed_by, c.key, c.old_value, c.new_value
from hpopt.study_change c join public.studies s using (study_id)
"""

VIEWS = {
    "attempts": _ATTEMPTS,
    "constraint_violations": _CONSTRAINT_VIOLATIONS,
    "trials": _TRIALS,
    "leaderboard": _LEADERBOARD,
    "best_params": _BEST_PARAMS,
    "learning_curves": _LEARNING_CURVES,
    "fleet": _FLEET,
    "findings": _FINDINGS,
    "budget_usage": _BUDGET_USAGE,
    "changes": _CHANGES,
    "comparisons": _COMPARISONS,
}

# A number in text, such as JSON; null for anything else.
_NUMBER = """
create or replace function hpopt.number(given text) returns double precision language plpgsql immutable strict as $$
begin
    return given::double precision;
exception when data_exception then
    return null;
end $$
"""

# The final value of a trial; null unless it is a finite number, as PostgreSQL ranks nan above all others.
_FINITE_VALUE = """
create or replace function hpopt.finite_value(value double precision, value_type text) returns double precision
language sql immutable as $$
    select case when value_type = 'FINITE' and value > '-infinity' and value < 'infinity' then value end
$$
"""

# A time of Optuna's tables; null outside of the years 1 to 9999, which Python cannot represent.
_UTC = """
create or replace function hpopt.utc(given timestamp) returns timestamptz language sql immutable as $$
    select case when given > '0001-01-02' and given < '9999-12-31' then given at time zone 'UTC' end
$$
"""

# The name of the first study of the family of a study; null for itself, and for studies of other programs.
_PARENT = """
create or replace function hpopt.parent(of_study_id integer) returns text language sql stable strict as $$
    select (
        select s.study_name
        from hpopt.study h join public.studies s on s.study_id = h.root_id
        where h.study_id = of_study_id and h.root_id <> of_study_id
    )
$$
"""

# The value of a parameter as JSON: Optuna stores a number, which for choices is their index. A number that is not
# finite is a string. Null where there is no such choice or the distribution is damaged. Python writes Infinity and NaN
# into a distribution, and escapes NUL and lone surrogates, all of which jsonb refuses.
_PARSED_PARAM_VALUE = r"""
create or replace function hpopt.parsed_param_value(stored double precision, distribution_json text) returns jsonb
language plpgsql stable strict as $$
declare
    distribution jsonb;
begin
    begin
        distribution := distribution_json::jsonb;
    exception when others then
        begin
            distribution := regexp_replace(
                regexp_replace(distribution_json, '(?<=[\[,:]\s*)(-?Infinity|NaN)(?=\s*[],}])', '"\1"', 'g'),
                '(?<!\\)\\u(0000|d[89ab]..(?!\\ud[c-f]..)|(?<!\\ud[89ab]..\\u)d[c-f]..)', '\\ufffd', 'gi'
            )::jsonb;
        exception when others then
            return null;
        end;
    end;
    return case
        when distribution ->> 'name' = 'CategoricalDistribution' then
            case when stored >= 0 and stored < 1e9
                then distribution -> 'attributes' -> 'choices' -> trunc(stored)::int
            end
        when distribution ->> 'name' like 'Int%' and abs(stored) < 1e18 then to_jsonb(stored::bigint)
        when jsonb_typeof(distribution) = 'object' then to_jsonb(stored)
    end;
end $$
"""

# Most distributions are those of numbers, as Optuna writes them: they need no parser, and PostgreSQL inlines this.
_PARAM_VALUE = """
create or replace function hpopt.param_value(stored double precision, distribution_json text) returns jsonb
language sql stable as $$
    select case
        when distribution_json like '{"name": "FloatDistribution"%' then to_jsonb(stored)
        when distribution_json like '{"name": "IntDistribution"%' and abs(stored) < 1e18 then to_jsonb(stored::bigint)
        else hpopt.parsed_param_value(stored, distribution_json)
    end
$$
"""

# Record that a worker reached the database; null for a worker that was deleted. A worker that was disconnected for half
# of its stale_after_s cannot tell which heartbeats stopped meanwhile, so its connection counts from now.
_RECORD_CONTACT = """
create or replace function hpopt.record_contact(contacting_worker_id bigint) returns bigint language sql as $$
    update hpopt.worker
    set connected_since = case
            when heartbeat_at < now() - make_interval(secs => stale_after_s / 2) then now() else connected_since
        end,
        heartbeat_at = now(), stopped_at = null, stop_reason = null
    where worker_id = contacting_worker_id
    returning worker_id
$$
"""

# Count the attempts at a trial since its furthest evaluation, or since it was requeued after a failure, the current
# one included. Preempted ones do not count.
_ATTEMPTS_WITHOUT_PROGRESS = """
create or replace function hpopt.attempts_without_progress(of_trial_id integer) returns bigint language sql stable as $$
    select count(*) from hpopt.attempt a
    where a.trial_id = of_trial_id and a.outcome is distinct from 'preempted'
      and a.attempt_number > coalesce((
          select furthest.attempt_number
          from hpopt.attempt furthest
          cross join lateral (
              select max(e.step) as step from hpopt.evaluation e where e.optuna_trial_id = furthest.optuna_trial_id
          ) reached
          where furthest.trial_id = of_trial_id and reached.step is not null
          order by reached.step desc, furthest.attempt_number limit 1
      ), 0)
      and not exists (
          select from hpopt.attempt f
          where f.trial_id = of_trial_id and f.outcome = 'failed' and f.attempt_number >= a.attempt_number
      )
$$
"""

# End an attempt unless it has ended, and add its device time to the study. An Optuna trial that was ended outside of
# hpopt decides the outcome; a trial that was lost max_attempts times in a row without progress has failed. Without
# is_live the device time is that of the last heartbeat. is_running tells whether the Optuna trial is still to be ended.
_END_ATTEMPT = """
create or replace function hpopt.end_attempt(
    ending_attempt_id bigint, given_outcome text, given_reason text, is_live boolean,
    retry_after_s double precision, max_attempts integer
) returns table (outcome text, is_running boolean, optuna_trial_id integer) language sql as $$
    with ended as (
        update hpopt.attempt a
        set ended_at = now(),
            retry_at = case when t.state = 'RUNNING' and given_outcome = 'preempted'
                then now() + make_interval(secs => retry_after_s) end,
            device_seconds = case when is_live then extract(epoch from now() - a.started_at) else a.device_seconds end,
            outcome = case
                when t.state = 'COMPLETE' then 'complete'
                when t.state = 'PRUNED' then 'pruned'
                when t.state = 'FAIL' then 'failed'
                when given_outcome = 'lost' and hpopt.attempts_without_progress(a.trial_id) >= max_attempts
                    then 'failed'
                else given_outcome
            end,
            reason = case
                when t.state <> 'RUNNING' then 'ended outside of hpopt'
                when given_outcome = 'lost' and hpopt.attempts_without_progress(a.trial_id) >= max_attempts
                    then given_reason || ' (' || max_attempts || ' times in a row without progress)'
                else given_reason
            end
        from public.trials t
        where a.attempt_id = ending_attempt_id and a.ended_at is null and t.trial_id = a.optuna_trial_id
        returning a.outcome, t.state = 'RUNNING' as is_running, a.optuna_trial_id, a.study_id, a.device_seconds
    ), charged as (
        update hpopt.study s set device_seconds = s.device_seconds + e.device_seconds
        from ended e where s.study_id = e.study_id
    )
    select e.outcome, e.is_running, e.optuna_trial_id from ended e
$$
"""

# The 97.5% quantile of Student's t distribution, by degrees of freedom.
_T_QUANTILE = """
create or replace function hpopt.t_quantile(degrees_of_freedom integer) returns double precision
language sql immutable strict as $$
    select coalesce((array[
        12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
        2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
        2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423
    ])[degrees_of_freedom], 1.959964 + 2.372 / degrees_of_freedom + 2.823 / degrees_of_freedom ^ 2)
$$
"""

# The value of a trial after an evaluation: that of the evaluation, or the best so far.
_SUMMARY_VALUE = """
create or replace function hpopt.summary_value(of_optuna_trial_id integer, last_value double precision)
returns double precision language sql stable as $$
    select case
        when h.summary = 'last' then last_value
        when d.direction = 'MAXIMIZE' then greatest(last_value, max(i.intermediate_value))
        else least(last_value, min(i.intermediate_value))
    end
    from public.trials t
    join hpopt.study h using (study_id)
    join public.study_directions d on d.study_id = t.study_id and d.objective = 0
    left join public.trial_intermediate_values i
        on h.summary = 'best' and i.trial_id = t.trial_id and i.intermediate_value_type = 'FINITE'
    where t.trial_id = of_optuna_trial_id
    group by h.summary, d.direction
$$
"""

FUNCTIONS = {
    "number": _NUMBER,
    "finite_value": _FINITE_VALUE,
    "utc": _UTC,
    "parent": _PARENT,
    "parsed_param_value": _PARSED_PARAM_VALUE,
    "param_value": _PARAM_VALUE,
    "t_quantile": _T_QUANTILE,
    "summary_value": _SUMMARY_VALUE,
    "record_contact": _RECORD_CONTACT,
    "attempts_without_progress": _ATTEMPTS_WITHOUT_PROGRESS,
    "end_attempt": _END_ATTEMPT,
}

# The tables of Optuna, which can share schema public with others.
OPTUNA_TABLES = (
    *("studies", "study_directions", "study_system_attributes", "study_user_attributes", "trial_heartbeats"),
    *("trial_intermediate_values", "trial_params", "trial_system_attributes", "trial_user_attributes", "trial_values"),
    *("trials", "version_info"),
)
_VERSIONS = "hpopt.alembic_version, public.alembic_version, public.version_info"
_ROWS = ", ".join(
    (
        *(table.fullname for table in metadata.tables.values() if table.schema == SCHEMA),
        *(f"public.{table}" for table in OPTUNA_TABLES if table != "version_info"),
    )
)
_VIEWS = ", ".join(f"hpopt.{view}" for view in VIEWS)

# Roles belong to the whole server: without the right to create them, an administrator can do it. Who creates the owner
# is a member of it.
_CREATE_ROLE = """
do $$ begin
    if not exists (select from pg_roles where rolname = '{role}') then
        create role {role} nologin;
        if '{role}' = 'hpopt_owner' then
            grant hpopt_owner to current_user;
        end if;
    end if;
exception
    when insufficient_privilege or duplicate_object or unique_violation then null;
end $$
"""

_GRANTS = {
    "hpopt_owner": (
        "grant all on schema hpopt, public to hpopt_owner",
        f"grant all on {_ROWS}, {_VIEWS}, {_VERSIONS} to hpopt_owner",
    ),
    "hpopt_worker": (
        "grant usage on schema hpopt, public to hpopt_worker",
        f"grant select on {_ROWS}, {_VIEWS}, {_VERSIONS} to hpopt_worker",
        f"grant insert, update, delete on {_ROWS} to hpopt_worker",
    ),
    "hpopt_reader": (
        "grant usage on schema hpopt, public to hpopt_reader",
        f"grant select on {_ROWS}, {_VIEWS}, {_VERSIONS} to hpopt_reader",
    ),
}

# Statements that make what this user owns the property of hpopt_owner, whose members can then upgrade it.
_CHANGE_OWNER = """
select format('alter %s %s owner to hpopt_owner', kind, name)
from (
    select 'schema' as kind, nspname::text as name, nspowner as owner from pg_namespace where nspname = 'hpopt'
    union all
    select case relkind when 'v' then 'view' else 'table' end, c.oid::regclass::text, relowner
    from pg_class c
    where relkind in ('r', 'v') and (
        relnamespace = 'hpopt'::regnamespace
        or relnamespace = 'public'::regnamespace and relname = any(cast(:optuna as text[]))
    )
    union all
    select 'function', oid::regprocedure::text, proowner from pg_proc where pronamespace = 'hpopt'::regnamespace
) ours
join pg_roles me on me.rolname = current_user and me.oid = ours.owner
join pg_roles r on r.rolname = 'hpopt_owner' and pg_has_role(r.oid, 'usage')
"""

# Statements that let workers draw numbers for new rows of Optuna's tables; ours draw theirs without a right.
_GRANT_SEQUENCES = """
select format('grant usage on sequence %s to %s', s.oid::regclass, r.rolname)
from pg_class s
join pg_depend d on d.objid = s.oid and d.deptype = 'a' and d.classid = 'pg_class'::regclass
join pg_class t on t.oid = d.refobjid and t.relnamespace = 'public'::regnamespace
join pg_roles r on r.rolname in ('hpopt_owner', 'hpopt_worker')
where s.relkind = 'S' and t.relname = any(cast(:optuna as text[]))
"""

# Roles that are still to be created by this user or to be granted their rights.
_INCOMPLETE_ROLES = """
select role
from unnest(cast(:roles as text[])) role
left join pg_roles r on r.rolname = role
join pg_namespace n on n.nspname = 'hpopt'
join pg_roles me on me.rolname = current_user
where case when r.oid is null then me.rolsuper or me.rolcreaterole
           else not has_schema_privilege(r.oid, n.oid, 'usage') end
  and pg_has_role(n.nspowner, 'usage')
"""

# Statements that repeat the rights of others on our views, which are lost when a view is dropped.
_RIGHTS_OF_OTHERS = """
select format(
    'grant %s on hpopt.%I to %s', a.privilege_type, c.relname,
    case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end
)
from pg_class c
cross join lateral aclexplode(c.relacl) a
where c.relnamespace = 'hpopt'::regnamespace and c.relkind = 'v' and c.relname = any(cast(:views as text[]))
  and a.grantee <> c.relowner
"""

# invalid_table_definition and invalid_function_definition: columns or arguments were changed, not only added.
_CANNOT_REPLACE = {"42P16", "42P13"}


def views_version() -> str:
    """Return a version of the views and functions; the comment of the schema has that of a database."""
    definitions = (*VIEWS.values(), *FUNCTIONS.values(), str(_GRANTS))
    return "views " + hashlib.sha256("".join(definitions).encode()).hexdigest()[:16]


def drop_views(connection: Connection) -> None:
    """Drop the views and functions, so that the tables below them can change."""
    for name in reversed(VIEWS):
        connection.execute(text(f"drop view if exists {SCHEMA}.{name}"))
    for name in reversed(FUNCTIONS):
        connection.execute(text(f"drop function if exists {SCHEMA}.{name}"))


def create_views(connection: Connection) -> None:
    """Create the views, the functions and the roles, or replace them, and grant each role its rights.

    Views of others over ours, and rights on ours that were granted to others, stay. Where a column was changed, ours
    have to be dropped first, which fails if others depend on them.
    """
    try:
        with connection.begin_nested():
            _create(connection)
    except ProgrammingError as error:
        if getattr(error.orig, "pgcode", None) not in _CANNOT_REPLACE:
            raise
        grants = connection.scalars(text(_RIGHTS_OF_OTHERS), {"views": list(VIEWS)}).all()
        drop_views(connection)
        _create(connection)
        for grant in grants:
            connection.exec_driver_sql(grant.replace("%", "%%"))
    connection.execute(text(f"comment on schema {SCHEMA} is '{views_version()}'"))
    create_roles(connection)


def create_roles(connection: Connection) -> None:
    """Create the roles that do not exist, if this user may, and grant each its rights."""
    for role in ROLES:
        connection.exec_driver_sql(_CREATE_ROLE.format(role=role))
    missing = missing_roles(connection)
    parameters = {"optuna": list(OPTUNA_TABLES)}
    statements = [grant for role in ROLES if role not in missing for grant in _GRANTS[role]]
    statements += connection.scalars(text(_GRANT_SEQUENCES), parameters)
    # The last: the owner grants the rights.
    statements += connection.scalars(text(_CHANGE_OWNER), parameters)
    for statement in statements:
        connection.exec_driver_sql(statement.replace("%", "%%"))


def missing_roles(connection: Connection) -> list[str]:
    """Return the roles that the server does not have."""
    existing = set(connection.scalars(text("select rolname from pg_roles")))
    return [role for role in ROLES if role not in existing]


def incomplete_roles(connection: Connection) -> list[str]:
    """Return the roles that this user could create, or that have not been granted their rights."""
    return list(connection.scalars(text(_INCOMPLETE_ROLES), {"roles": list(ROLES)}))


def _create(connection: Connection) -> None:
    for definition in (*FUNCTIONS.values(), *VIEWS.values()):
        connection.exec_driver_sql(definition.replace("%", "%%"))
