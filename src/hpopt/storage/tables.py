"""Define the tables of schema `hpopt`.

Optuna's tables are in schema `public`; foreign keys refer to its studies and trials.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
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

from hpopt.analysis.answer import AnswerKind
from hpopt.analysis.trials import Outcome

SCHEMA = "hpopt"

# Workers run the trials of an open study, wait while it is paused, and exit when it is stopped.
STATES = ("open", "paused", "stopped")

# A study that is not the first of its family follows its parent.
ROLES = ("search", "compare", "confirm")

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

# The columns of Optuna's tables that foreign keys refer to.
Table("studies", metadata, Column("study_id", Integer, primary_key=True), schema="public")
Table("trials", metadata, Column("trial_id", Integer, primary_key=True), schema="public")

study = Table(
    "study",
    metadata,
    Column("study_id", ForeignKey("public.studies.study_id", ondelete="CASCADE"), primary_key=True),
    Column("parent_id", ForeignKey("hpopt.study.study_id", ondelete="SET NULL")),
    # The study whose family this is: the parent's, or the study itself.
    Column("root_id", ForeignKey("hpopt.study.study_id", ondelete="CASCADE"), nullable=False),
    Column("role", Text, nullable=False, server_default="search"),
    # The configurations that a confirmation repeats, and their trials in the parent.
    Column("candidates", JSONB),
    Column("file", Text, nullable=False),
    Column("file_sha256", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("created_by", Text, nullable=False),
    Column("git_commit", Text),
    Column("versions", JSONB, nullable=False),
    Column("data_fingerprint", Text),
    # Which evaluation of a run is its value.
    Column("summary", Text, nullable=False, server_default="last"),
    # What displaying the study needs of the objective, so that reading a study imports no training code.
    Column("defaults", JSONB, nullable=False),
    Column("n_steps", Integer),
    # Searched names that the objective does not take: derived values depend on them.
    Column("not_taken", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    # Trials that were started, counted in the row that reservations lock.
    Column("n_started", Integer, nullable=False, server_default="0"),
    # Device time of the ended attempts, added when each ends: a sum over all of them takes longer with each trial.
    Column("device_seconds", Double, nullable=False, server_default="0"),
    # Finished trials at the time of the last analysis.
    Column("n_analyzed", Integer),
    Column("state", Text, nullable=False, server_default="open"),
    Column("state_reason", Text),
    Column("state_since", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint(f"role in {ROLES}", name="role"),
    CheckConstraint(f"state in {STATES}", name="state"),
    CheckConstraint("summary in ('last', 'best')", name="summary"),
    Index(None, "parent_id"),
    Index(None, "root_id"),
)

# What `hpopt create` has changed in a study.
study_change = Table(
    "study_change",
    metadata,
    Column("study_change_id", BigInteger, Identity(always=True), primary_key=True),
    Column("study_id", ForeignKey("hpopt.study.study_id", ondelete="CASCADE"), nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("changed_by", Text, nullable=False),
    # A key of the study file, or the version of hpopt.
    Column("key", Text, nullable=False),
    Column("old_value", Text, nullable=False),
    Column("new_value", Text, nullable=False),
    Index(None, "study_id"),
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
    # Other workers mark its attempt as lost when its last heartbeat is older than this.
    Column("stale_after_s", Double, nullable=False, server_default="60"),
    Column("give_up_after_s", Double, nullable=False, server_default="900"),
    # A worker that was disconnected cannot tell whose heartbeats stopped meanwhile.
    Column("connected_since", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("heartbeat_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
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
    # Each attempt has an Optuna trial of its own; the one of the first attempt identifies the trial.
    Column("optuna_trial_id", ForeignKey("public.trials.trial_id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("trial_id", ForeignKey("public.trials.trial_id", ondelete="CASCADE"), nullable=False),
    Column("attempt_number", SmallInteger, nullable=False, server_default="1"),
    Column("seed", BigInteger),
    # Of a run of a comparison.
    Column("arm", Text),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("heartbeat_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("ended_at", DateTime(timezone=True)),
    Column("outcome", Text),
    Column("reason", Text),
    # A trial that was requeued is not retried before this time. A failed trial is requeued only by `hpopt retry`.
    Column("retry_at", DateTime(timezone=True)),
    # Whether the trial goes on after this attempt.
    Column(
        "is_requeued",
        Boolean,
        Computed(
            # As PostgreSQL prints it, so that Alembic finds no difference.
            "coalesce(outcome = 'lost'::text or outcome = 'preempted'::text"
            " or (outcome = 'failed'::text and retry_at is not null), false)",
            persisted=True,
        ),
        nullable=False,
    ),
    Column("device_seconds", Double, nullable=False, server_default="0"),
    Column("tokens", BigInteger, nullable=False, server_default="0"),
    Column("peak_memory_gib", Double),
    Column("config", JSONB),
    # The values of [derived], which the config has among all others.
    Column("derived", JSONB),
    Column("data_fingerprint", Text),
    # Of a complete trial that is among the best `keep`: the folder of its files, on the host of its worker.
    Column("folder", Text),
    # Of a confirmation run: no view shows those of other runs than the winner's.
    Column("test_metrics", JSONB),
    CheckConstraint(f"outcome in {tuple(map(str, Outcome))}", name="outcome"),
    CheckConstraint("(outcome is null) = (ended_at is null)", name="ended"),
    UniqueConstraint("trial_id", "attempt_number"),
    Index(None, "study_id"),
    Index(None, "worker_id"),
    Index("attempt_open_idx", "study_id", postgresql_where=text("ended_at is null")),
    Index("attempt_requeued_idx", "study_id", postgresql_where=text("is_requeued")),
)

evaluation = Table(
    "evaluation",
    metadata,
    Column("optuna_trial_id", ForeignKey("public.trials.trial_id", ondelete="CASCADE"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("attempt_id", ForeignKey("hpopt.attempt.attempt_id", ondelete="CASCADE"), nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    # Every metric by name; values that are not finite are strings, which Postgres casts to double precision.
    Column("metrics", JSONB, nullable=False),
    Column("recorded_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index(None, "attempt_id"),
)

# What the pruner compares: the metric of a trial when it first reached a fraction of its schedule.
rung = Table(
    "rung",
    metadata,
    Column("trial_id", ForeignKey("public.trials.trial_id", ondelete="CASCADE"), primary_key=True),
    Column("fraction", Double, primary_key=True),
    Column("study_id", ForeignKey("hpopt.study.study_id", ondelete="CASCADE"), nullable=False),
    Column("step", Integer, nullable=False),
    Column("value", Double, nullable=False),
    Index(None, "study_id", "fraction", "value"),
)

# The findings of the last analysis; hpopt.findings has the codes.
finding = Table(
    "finding",
    metadata,
    Column("study_id", ForeignKey("hpopt.study.study_id", ondelete="CASCADE"), primary_key=True),
    Column("code", Text, primary_key=True),
    # The parameter or parameters concerned, or empty.
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

# The answer of a confirmation, by the root of its family, or of a comparison: its better arm, else its first one. Where
# the arms have different data, each of them.
answer = Table(
    "answer",
    metadata,
    Column("study_id", ForeignKey("hpopt.study.study_id", ondelete="CASCADE"), primary_key=True),
    # Empty for a confirmation.
    Column("arm", Text, primary_key=True, server_default=""),
    # The study whose runs these are: the confirmation, or the comparison itself.
    Column("confirmation_id", ForeignKey("hpopt.study.study_id", ondelete="CASCADE"), nullable=False),
    # Finished runs of the confirmation, from which it follows.
    Column("n_runs", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("params", JSONB, nullable=False),
    # The trial of the parent with these params.
    Column("trial", Integer, nullable=False),
    Column("value", Double, nullable=False),
    # The 95% interval of the true mean; null for a single run.
    Column("value_low", Double),
    Column("value_high", Double),
    Column("n_seeds", Integer, nullable=False),
    # Of a confirmation: how much better the best single value of the search is than its confirmed mean.
    Column("optimism", Double),
    Column("noise_std", Double),
    Column("candidates", JSONB),
    Column("test_metrics", JSONB),
    Column("answered_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint(f"kind in {tuple(map(str, AnswerKind))}", name="kind"),
    Index(None, "confirmation_id"),
)

# The comparisons of a study's arms, each with the first.
comparison = Table(
    "comparison",
    metadata,
    Column("study_id", ForeignKey("hpopt.study.study_id", ondelete="CASCADE"), primary_key=True),
    # In the order of the study file.
    Column("position", SmallInteger, primary_key=True),
    # Ended attempts of the study, from which it follows.
    Column("n_runs", Integer, nullable=False),
    Column("baseline", Text, nullable=False),
    Column("treatment", Text, nullable=False),
    # Pairs of complete runs with one seed.
    Column("n", Integer, nullable=False),
    # The 95% interval of the mean of treatment minus baseline.
    Column("difference", Double),
    Column("low", Double),
    Column("high", Double),
    Column("p_value", Double),
    Column("permutation_p_value", Double),
    Column("detectable", Double),
    Column("verdict", Text),
    Column("needed_seeds_low", Integer),
    Column("needed_seeds_high", Integer),
    # Why there is no verdict.
    Column("reason", Text),
    Column("compared_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("(verdict is null) <> (reason is null)", name="reason"),
)
