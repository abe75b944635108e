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
    CheckConstraint("role in ('search', 'confirm', 'ladder', 'phase')", name="role"),
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
    # Optuna's trial of this go, and of the first go of the same logical trial; null until it is asked for.
    Column("trial_id", ForeignKey("public.trials.trial_id", ondelete="CASCADE"), unique=True),
    Column("first_trial_id", ForeignKey("public.trials.trial_id", ondelete="CASCADE")),
    Column("go", SmallInteger, nullable=False, server_default="1"),
    Column("seed", BigInteger),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("heartbeat_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("ended_at", DateTime(timezone=True)),
    Column("outcome", Text),
    Column("reason", Text),
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

# Retries are further Optuna trials of one logical trial: only the last go that got as far as Optuna is shown. Trials
# that stock Optuna made are shown as they are; those that no attempt ever held are not.
_TRIALS = """
create view hpopt.trials as
with goes as not materialized (
    select a.study_id, a.trial_id, a.go, a.seed, a.outcome, a.reason, a.config, a.started_at, a.ended_at,
           a.device_seconds, a.tokens, a.peak_memory_gib, coalesce(a.first_trial_id, a.trial_id) as logical_id
    from hpopt.attempt a
    where a.trial_id is not null
), logical as (
    select logical_id, max(go) as last_go, count(*)::int as n_attempts, min(started_at) as started_at,
           sum(device_seconds) as device_seconds, max(tokens) as tokens, max(peak_memory_gib) as peak_memory_gib
    from goes
    group by logical_id
), shown as (
    select g.trial_id, g.seed, g.outcome, g.reason, g.config, g.ended_at, l.n_attempts, l.started_at,
           l.device_seconds, l.tokens, l.peak_memory_gib, g.logical_id
    from logical l
    join goes g on g.logical_id = l.logical_id and g.go = l.last_go
)
select s.study_name,
       t.number as trial,
       case when h.outcome in ('lost', 'preempted') then 'WAITING' else t.state::text end as state,
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
       h.seed,
       coalesce(h.n_attempts, 0) as n_attempts,
       coalesce(h.tokens, 0) as tokens,
       coalesce(h.device_seconds, 0) as device_seconds,
       h.peak_memory_gib,
       coalesce(h.started_at, t.datetime_start at time zone 'UTC') as started_at,
       coalesce(h.ended_at, t.datetime_complete at time zone 'UTC') as finished_at,
       h.outcome,
       h.reason,
       h.config,
       t.trial_id,
       coalesce(h.logical_id, t.trial_id) as first_trial_id,
       t.study_id
from public.trials t
join public.studies s on s.study_id = t.study_id
left join shown h on h.trial_id = t.trial_id
left join public.trial_values v on v.trial_id = t.trial_id and v.objective = 0
where h.trial_id is not null
   or not exists (select from hpopt.attempt a where a.trial_id = t.trial_id)
      and not exists (
          select from public.trial_system_attributes g where g.trial_id = t.trial_id and g.key = 'hpopt:given_back'
      )
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
join hpopt.attempt a on coalesce(a.first_trial_id, a.trial_id) = t.first_trial_id
join hpopt.evaluation e on e.trial_id = a.trial_id
order by t.study_id, t.first_trial_id, e.step, a.go desc
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
       a.go,
       a.started_at as trial_started_at,
       a.tokens,
       (select sum(d.device_seconds) from hpopt.attempt d where d.worker_id = w.worker_id) as device_seconds
from hpopt.worker w
join public.studies s on s.study_id = w.study_id
left join hpopt.attempt a on a.worker_id = w.worker_id and a.ended_at is null
left join public.trials t on t.trial_id = a.trial_id
"""

VIEWS = {
    "trials": _TRIALS,
    "leaderboard": _LEADERBOARD,
    "best_params": _BEST_PARAMS,
    "learning_curves": _LEARNING_CURVES,
    "fleet": _FLEET,
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
