"""Owns the tables, views and roles of schema `hpopt`. Leaves their life to alembic/ and the rows to storage/.

Optuna's own tables live in schema `public`; its trials and studies are referred to and never altered. The views are
the public interface of the database: columns are added at the end, never renamed or removed.
"""

import hashlib

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

SCHEMA = "hpopt"
ROLES = ("hpopt_owner", "hpopt_worker", "hpopt_reader")

# How an attempt ended. The logical trial of a lost or preempted one goes back to the queue.
OUTCOMES = ("complete", "pruned", "diverged", "failed", "preempted", "lost")
# What may be done with a study: work on it, wait, or leave it.
STATES = ("open", "paused", "stopped")

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    },
)

# Optuna's, as far as foreign keys need them.
Table("studies", metadata, Column("study_id", Integer, primary_key=True), schema="public")
Table("trials", metadata, Column("trial_id", Integer, primary_key=True), schema="public")

study = Table(
    "study",
    metadata,
    Column("study_id", ForeignKey("public.studies.study_id", ondelete="CASCADE"), primary_key=True),
    Column("parent_id", ForeignKey("hpopt.study.study_id", ondelete="SET NULL")),
    Column("role", Text, nullable=False, server_default="search"),
    Column("file", Text, nullable=False),
    Column("file_sha256", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("created_by", Text, nullable=False),
    Column("git_commit", Text),
    Column("versions", JSONB, nullable=False),
    Column("data_fingerprint", Text),
    # Logical trials that were begun, counted where the row is locked.
    Column("n_started", Integer, nullable=False, server_default="0"),
    # What ended attempts cost, added where they end: a sum over all of them takes longer with each trial.
    Column("device_seconds", Double, nullable=False, server_default="0"),
    # Trials that had ended when the study was last analysed.
    Column("n_analysed", Integer),
    Column("state", Text, nullable=False, server_default="open"),
    Column("state_reason", Text),
    Column("state_since", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("role in ('search', 'confirm', 'ladder', 'phase')", name="role"),
    CheckConstraint(f"state in {STATES}", name="state"),
    Index(None, "parent_id"),
)

worker = Table(
    "worker",
    metadata,
    Column("worker_id", BigInteger, Identity(always=True), primary_key=True),
    Column("study_id", ForeignKey("hpopt.study.study_id", ondelete="CASCADE"), nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", Text, nullable=False),
    Column("engine", Text, nullable=False, server_default="local"),
    Column("job", Text),
    Column("hpopt_version", Text, nullable=False),
    # Its own patience: others may only take it for dead after that much silence.
    Column("stale_after_s", Double, nullable=False, server_default="60"),
    Column("give_up_after_s", Double, nullable=False, server_default="900"),
    # Who was cut off for a while cannot know that it was the others who were silent.
    Column("connected_since", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("stopped_at", DateTime(timezone=True)),
    Column("stop_reason", Text),
    Index(None, "study_id"),
)

attempt = Table(
    "attempt",
    metadata,
    Column("attempt_id", BigInteger, Identity(always=True), primary_key=True),
    Column("study_id", ForeignKey("hpopt.study.study_id", ondelete="CASCADE"), nullable=False),
    Column("worker_id", ForeignKey("hpopt.worker.worker_id", ondelete="CASCADE"), nullable=False),
    # Optuna's trial of this go, and of the first go of the same logical trial, which names the logical trial.
    Column("trial_id", ForeignKey("public.trials.trial_id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("first_trial_id", ForeignKey("public.trials.trial_id", ondelete="CASCADE"), nullable=False),
    Column("go", SmallInteger, nullable=False, server_default="1"),
    Column("seed", BigInteger),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("heartbeat_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("ended_at", DateTime(timezone=True)),
    Column("outcome", Text),
    Column("reason", Text),
    # A trial that a machine's fault sent back lets others go first.
    Column("retry_at", DateTime(timezone=True)),
    Column("device_seconds", Double, nullable=False, server_default="0"),
    Column("tokens", BigInteger, nullable=False, server_default="0"),
    Column("peak_memory_gib", Double),
    Column("config", JSONB),
    Column("data_fingerprint", Text),
    CheckConstraint(f"outcome in {OUTCOMES}", name="outcome"),
    CheckConstraint("(outcome is null) = (ended_at is null)", name="ended"),
    UniqueConstraint("first_trial_id", "go"),
    Index(None, "study_id"),
    Index(None, "worker_id"),
    Index("attempt_open_idx", "study_id", postgresql_where=text("ended_at is null")),
    Index("attempt_unfinished_idx", "study_id", postgresql_where=text("outcome in ('lost', 'preempted')")),
)

evaluation = Table(
    "evaluation",
    metadata,
    Column("trial_id", ForeignKey("public.trials.trial_id", ondelete="CASCADE"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("attempt_id", ForeignKey("hpopt.attempt.attempt_id", ondelete="CASCADE"), nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    # Every metric by name; one that is not finite is stored as the string that Postgres casts to a double.
    Column("metrics", JSONB, nullable=False),
    Column("recorded_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index(None, "attempt_id"),
)

# What the pruner compares: the metric of a logical trial when it first came to a fraction of its schedule.
rung = Table(
    "rung",
    metadata,
    Column("first_trial_id", ForeignKey("public.trials.trial_id", ondelete="CASCADE"), primary_key=True),
    Column("fraction", Double, primary_key=True),
    Column("study_id", ForeignKey("hpopt.study.study_id", ondelete="CASCADE"), nullable=False),
    Column("step", Integer, nullable=False),
    Column("value", Double, nullable=False),
    Index(None, "study_id", "fraction", "value"),
)

# What the analysis warns of, as it was last found; see findings.py for the codes.
finding = Table(
    "finding",
    metadata,
    Column("study_id", ForeignKey("hpopt.study.study_id", ondelete="CASCADE"), primary_key=True),
    Column("code", Text, primary_key=True),
    # The parameter that it is about, or nothing.
    Column("subject", Text, primary_key=True, server_default=""),
    # The most severe first.
    Column("position", SmallInteger, nullable=False),
    Column("severity", Text, nullable=False, server_default="note"),
    Column("message", Text, nullable=False),
    Column("evidence", JSONB, nullable=False),
    Column("remedy", Text, nullable=False),
    Column("found_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("severity in ('error', 'warning', 'note')", name="severity"),
)

# Which Optuna trials are goes of one logical trial. Whatever counts, compares or shows trials asks this view.
_GOES = """
create view hpopt.goes as
select a.study_id, a.first_trial_id, a.go, a.trial_id, a.attempt_id, a.worker_id, a.seed, a.config, a.outcome, a.reason,
       a.started_at, a.ended_at, a.retry_at, a.heartbeat_at, a.device_seconds, a.tokens, a.peak_memory_gib,
       not exists (
           select from hpopt.attempt later where later.first_trial_id = a.first_trial_id and later.go > a.go
       ) as is_last
from hpopt.attempt a
"""

# Of the goes of a logical trial the last is shown, with what all of them cost. Trials that stock Optuna made are shown
# as they are.
_TRIALS = """
create view hpopt.trials as
select s.study_name,
       t.number as trial,
       case when g.outcome in ('lost', 'preempted') then 'WAITING' else t.state::text end as state,
       case when v.value_type = 'FINITE' then v.value end as value,
       not exists (
           select from public.trial_system_attributes c
           where c.trial_id = t.trial_id and c.key like 'constraints:%' and c.value_json::double precision > 0
       ) as feasible,
       coalesce((
           select jsonb_object_agg(
               p.param_name,
               case p.distribution_json::jsonb ->> 'name'
                   when 'CategoricalDistribution'
                       then p.distribution_json::jsonb -> 'attributes' -> 'choices' -> p.param_value::int
                   when 'IntDistribution' then to_jsonb(p.param_value::bigint)
                   else to_jsonb(p.param_value)
               end)
           from public.trial_params p
           where p.trial_id = t.trial_id
       ), '{}'::jsonb) as params,
       g.seed,
       coalesce(a.n_attempts, 0) as n_attempts,
       coalesce(a.tokens, 0) as tokens,
       coalesce(a.device_seconds, 0) as device_seconds,
       a.peak_memory_gib,
       coalesce(a.started_at, t.datetime_start at time zone 'UTC') as started_at,
       coalesce(g.ended_at, t.datetime_complete at time zone 'UTC') as finished_at,
       g.outcome,
       g.reason,
       g.config,
       t.trial_id,
       coalesce(g.first_trial_id, t.trial_id) as first_trial_id,
       t.study_id
from public.trials t
join public.studies s on s.study_id = t.study_id
left join hpopt.goes g on g.trial_id = t.trial_id
left join lateral (
    select count(*)::int as n_attempts, min(all_goes.started_at) as started_at, max(all_goes.tokens) as tokens,
           sum(all_goes.device_seconds) as device_seconds, max(all_goes.peak_memory_gib) as peak_memory_gib
    from hpopt.goes all_goes
    where all_goes.first_trial_id = g.first_trial_id
) a on g.trial_id is not null
left join public.trial_values v on v.trial_id = t.trial_id and v.objective = 0
where g.is_last is not false
"""

_LEADERBOARD = """
create view hpopt.leaderboard as
select t.study_name,
       rank() over (
           partition by t.study_id
           order by case when d.direction = 'MAXIMIZE' then -t.value else t.value end
       ) as rank,
       t.trial, t.value, t.params, t.seed, t.tokens, t.device_seconds, t.finished_at, t.study_id
from hpopt.trials t
join public.study_directions d on d.study_id = t.study_id and d.objective = 0
where t.state = 'COMPLETE' and t.feasible and t.value is not null
"""

# A value is an interval only when replicates have confirmed it; a single run has none.
_BEST_PARAMS = """
create view hpopt.best_params as
select distinct on (study_id)
       study_name,
       value,
       null::double precision as value_low,
       null::double precision as value_high,
       1 as n_seeds,
       'search'::text as source,
       params,
       trial,
       finished_at
from hpopt.leaderboard
order by study_id, rank, trial
"""

# A retry repeats the steps since the checkpoint: of each step, the last go's evaluation is shown.
_LEARNING_CURVES = """
create view hpopt.learning_curves as
select distinct on (t.study_id, t.first_trial_id, e.step)
       t.study_name, t.trial, e.step, e.tokens, e.seconds, e.metrics, e.recorded_at
from hpopt.trials t
join hpopt.goes g on g.first_trial_id = t.first_trial_id
join hpopt.evaluation e on e.trial_id = g.trial_id
order by t.study_id, t.first_trial_id, e.step, g.go desc
"""

_FLEET = """
create view hpopt.fleet as
select s.study_name,
       w.worker_id, w.host, w.pid, w.device, w.engine, w.job,
       w.started_at,
       w.seen_at,
       w.stopped_at,
       w.stop_reason,
       extract(epoch from now() - w.seen_at)::double precision as silent_seconds,
       t.number as trial,
       g.go,
       g.started_at as trial_started_at,
       g.tokens,
       (select sum(d.device_seconds) from hpopt.goes d where d.worker_id = w.worker_id) as device_seconds,
       w.stopped_at is null and w.seen_at < now() - make_interval(secs => w.stale_after_s) as is_silent,
       e.step,
       (e.metrics ->> 'tokens_per_second')::double precision as tokens_per_second
from hpopt.worker w
join public.studies s on s.study_id = w.study_id
left join hpopt.goes g on g.worker_id = w.worker_id and g.ended_at is null
left join public.trials t on t.trial_id = g.trial_id
left join lateral (
    select last.step, last.metrics from hpopt.evaluation last where last.trial_id = g.trial_id
    order by last.step desc limit 1
) e on true
"""

_FINDINGS = """
create view hpopt.findings as
select s.study_name, f.position, f.code, nullif(f.subject, '') as subject, f.message, f.evidence, f.remedy, f.found_at,
       f.severity
from hpopt.finding f join public.studies s using (study_id)
"""

VIEWS = {
    "goes": _GOES,
    "trials": _TRIALS,
    "leaderboard": _LEADERBOARD,
    "best_params": _BEST_PARAMS,
    "learning_curves": _LEARNING_CURVES,
    "fleet": _FLEET,
    "findings": _FINDINGS,
}

# Roles belong to the whole server: whoever may not create them is told, and an administrator can do it later.
_CREATE_ROLE = """
do $$ begin
    if not exists (select from pg_roles where rolname = '{role}') then
        create role {role} nologin;
    end if;
exception
    when insufficient_privilege then raise warning 'role {role} was not created: no right to create roles';
    when duplicate_object or unique_violation then null;
end $$
"""

_GRANTS = {
    "hpopt_owner": (
        "grant all on schema hpopt, public to hpopt_owner",
        "grant all on all tables in schema hpopt, public to hpopt_owner",
        "grant all on all sequences in schema hpopt, public to hpopt_owner",
    ),
    "hpopt_worker": (
        "grant usage on schema hpopt, public to hpopt_worker",
        "grant select, insert, update, delete on all tables in schema hpopt, public to hpopt_worker",
        "grant usage, select on all sequences in schema hpopt, public to hpopt_worker",
    ),
    "hpopt_reader": (
        "grant usage on schema hpopt to hpopt_reader",
        *(f"grant select on hpopt.{view} to hpopt_reader" for view in VIEWS),
    ),
}


def views_version() -> str:
    """Name the views as they are defined here; the schema's comment says which ones a database has."""
    return "views " + hashlib.sha256("".join((*VIEWS.values(), str(_GRANTS))).encode()).hexdigest()[:16]


def drop_views(connection: Connection) -> None:
    """Drop the views, so that the tables below them can change."""
    for name in reversed(VIEWS):
        connection.execute(text(f"drop view if exists {SCHEMA}.{name}"))


def create_views(connection: Connection) -> None:
    """Create the views and the roles, and grant each role what it needs."""
    for definition in VIEWS.values():
        connection.exec_driver_sql(definition.replace("%", "%%"))
    connection.execute(text(f"comment on schema {SCHEMA} is '{views_version()}'"))
    for role in ROLES:
        connection.exec_driver_sql(_CREATE_ROLE.format(role=role).replace("%", "%%"))
        if connection.scalar(text("select true from pg_roles where rolname = :role"), {"role": role}):
            for grant in _GRANTS[role]:
                connection.execute(text(grant))
