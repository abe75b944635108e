"""Create the tables of studies, their changes, workers, attempts, evaluations, rungs, findings and results."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op
from hpopt.storage import views

revision = "initial"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "study",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("root_id", sa.Integer(), nullable=False),
        sa.Column("role", sa.Text(), server_default="search", nullable=False),
        sa.Column("candidates", postgresql.JSONB(), nullable=True),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("file_sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("git_commit", sa.Text(), nullable=True),
        sa.Column("versions", postgresql.JSONB(), nullable=False),
        sa.Column("data_fingerprint", sa.Text(), nullable=True),
        sa.Column("summary", sa.Text(), server_default="last", nullable=False),
        sa.Column("defaults", postgresql.JSONB(), nullable=False),
        sa.Column("n_steps", sa.Integer(), nullable=True),
        sa.Column("not_taken", postgresql.JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.Column("n_started", sa.Integer(), server_default="0", nullable=False),
        sa.Column("device_seconds", sa.Double(), server_default="0", nullable=False),
        sa.Column("n_analyzed", sa.Integer(), nullable=True),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=True),
        sa.Column("state_since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("state in ('open', 'paused', 'stopped')", name="study_state_check"),
        sa.CheckConstraint("summary in ('last', 'best')", name="study_summary_check"),
        sa.CheckConstraint("role in ('search', 'compare', 'confirm')", name="study_role_check"),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["hpopt.study.study_id"], name="study_parent_id_fkey", ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["root_id"], ["hpopt.study.study_id"], name="study_root_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["public.studies.study_id"], name="study_study_id_fkey", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_id", name="study_pkey"),
        schema="hpopt",
    )
    op.create_index("study_parent_id_idx", "study", ["parent_id"], schema="hpopt")
    op.create_index("study_root_id_idx", "study", ["root_id"], schema="hpopt")
    op.create_table(
        "study_change",
        sa.Column("study_change_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("old_value", sa.Text(), nullable=False),
        sa.Column("new_value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["hpopt.study.study_id"], name="study_change_study_id_fkey", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_change_id", name="study_change_pkey"),
        schema="hpopt",
    )
    op.create_index("study_change_study_id_idx", "study_change", ["study_id"], schema="hpopt")
    op.create_table(
        "worker",
        sa.Column("worker_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("engine", sa.Text(), server_default="local", nullable=False),
        sa.Column("job", sa.Text(), nullable=True),
        sa.Column("hpopt_version", sa.Text(), nullable=False),
        sa.Column("stale_after_s", sa.Double(), server_default="60", nullable=False),
        sa.Column("give_up_after_s", sa.Double(), server_default="900", nullable=False),
        sa.Column("connected_since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("stopped_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stop_reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["study_id"], ["hpopt.study.study_id"], name="worker_study_id_fkey", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("worker_id", name="worker_pkey"),
        schema="hpopt",
    )
    op.create_index("worker_study_id_idx", "worker", ["study_id"], schema="hpopt")
    op.create_table(
        "attempt",
        sa.Column("attempt_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.BigInteger(), nullable=False),
        sa.Column("optuna_trial_id", sa.Integer(), nullable=False),
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("attempt_number", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("arm", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "is_requeued",
            sa.Boolean(),
            sa.Computed(
                "coalesce(outcome = 'lost'::text or outcome = 'preempted'::text"
                " or (outcome = 'failed'::text and retry_at is not null), false)",
                persisted=True,
            ),
            nullable=False,
        ),
        sa.Column("device_seconds", sa.Double(), server_default="0", nullable=False),
        sa.Column("tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("peak_memory_gib", sa.Double(), nullable=True),
        sa.Column("config", postgresql.JSONB(), nullable=True),
        sa.Column("derived", postgresql.JSONB(), nullable=True),
        sa.Column("data_fingerprint", sa.Text(), nullable=True),
        sa.Column("folder", sa.Text(), nullable=True),
        sa.Column("test_metrics", postgresql.JSONB(), nullable=True),
        sa.CheckConstraint(
            "outcome in ('complete', 'pruned', 'diverged', 'failed', 'preempted', 'lost')", name="attempt_outcome_check"
        ),
        sa.CheckConstraint("(outcome is null) = (ended_at is null)", name="attempt_ended_check"),
        sa.ForeignKeyConstraint(
            ["optuna_trial_id"], ["public.trials.trial_id"], name="attempt_optuna_trial_id_fkey", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["study_id"], ["hpopt.study.study_id"], name="attempt_study_id_fkey", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["public.trials.trial_id"], name="attempt_trial_id_fkey", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["worker_id"], ["hpopt.worker.worker_id"], name="attempt_worker_id_fkey", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("attempt_id", name="attempt_pkey"),
        sa.UniqueConstraint("optuna_trial_id", name="attempt_optuna_trial_id_key"),
        sa.UniqueConstraint("trial_id", "attempt_number", name="attempt_trial_id_attempt_number_key"),
        schema="hpopt",
    )
    op.create_index("attempt_study_id_idx", "attempt", ["study_id"], schema="hpopt")
    op.create_index("attempt_worker_id_idx", "attempt", ["worker_id"], schema="hpopt")
    op.create_index(
        "attempt_open_idx", "attempt", ["study_id"], schema="hpopt", postgresql_where=sa.text("ended_at is null")
    )
    op.create_index(
        "attempt_requeued_idx", "attempt", ["study_id"], schema="hpopt", postgresql_where=sa.text("is_requeued")
    )
    # A heartbeat updates the row: free space keeps the new version on its page, and the config is stored elsewhere.
    op.execute("alter table hpopt.attempt set (fillfactor = 70, toast_tuple_target = 128)")
    op.execute("alter table hpopt.worker set (fillfactor = 70)")
    op.create_table(
        "evaluation",
        sa.Column("optuna_trial_id", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("attempt_id", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("metrics", postgresql.JSONB(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["hpopt.attempt.attempt_id"], name="evaluation_attempt_id_fkey", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["optuna_trial_id"], ["public.trials.trial_id"], name="evaluation_optuna_trial_id_fkey", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("optuna_trial_id", "step", name="evaluation_pkey"),
        schema="hpopt",
    )
    op.create_index("evaluation_attempt_id_idx", "evaluation", ["attempt_id"], schema="hpopt")
    op.create_table(
        "rung",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("fraction", sa.Double(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["public.trials.trial_id"], name="rung_trial_id_fkey", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["study_id"], ["hpopt.study.study_id"], name="rung_study_id_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("trial_id", "fraction", name="rung_pkey"),
        schema="hpopt",
    )
    op.create_index("rung_study_id_fraction_value_idx", "rung", ["study_id", "fraction", "value"], schema="hpopt")
    op.create_table(
        "finding",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), server_default="", nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("severity", sa.Text(), server_default="note", nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("evidence", postgresql.JSONB(), nullable=False),
        sa.Column("remedy", sa.Text(), nullable=False),
        sa.Column("found_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("severity in ('error', 'warning', 'note')", name="finding_severity_check"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["hpopt.study.study_id"], name="finding_study_id_fkey", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_id", "code", "subject", name="finding_pkey"),
        schema="hpopt",
    )
    op.create_table(
        "answer",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("arm", sa.Text(), server_default="", nullable=False),
        sa.Column("confirmation_id", sa.Integer(), nullable=False),
        sa.Column("n_runs", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("params", postgresql.JSONB(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("value_low", sa.Double(), nullable=True),
        sa.Column("value_high", sa.Double(), nullable=True),
        sa.Column("n_seeds", sa.Integer(), nullable=False),
        sa.Column("optimism", sa.Double(), nullable=True),
        sa.Column("noise_std", sa.Double(), nullable=True),
        sa.Column("candidates", postgresql.JSONB(), nullable=True),
        sa.Column("test_metrics", postgresql.JSONB(), nullable=True),
        sa.Column("answered_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "kind in ('unconfirmed', 'confirmed', 'tie', 'better', 'equivalent', 'undecided')", name="answer_kind_check"
        ),
        sa.ForeignKeyConstraint(
            ["confirmation_id"], ["hpopt.study.study_id"], name="answer_confirmation_id_fkey", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["study_id"], ["hpopt.study.study_id"], name="answer_study_id_fkey", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_id", "arm", name="answer_pkey"),
        schema="hpopt",
    )
    op.create_index("answer_confirmation_id_idx", "answer", ["confirmation_id"], schema="hpopt")
    op.create_table(
        "comparison",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("n_runs", sa.Integer(), nullable=False),
        sa.Column("baseline", sa.Text(), nullable=False),
        sa.Column("treatment", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("difference", sa.Double(), nullable=True),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("p_value", sa.Double(), nullable=True),
        sa.Column("permutation_p_value", sa.Double(), nullable=True),
        sa.Column("detectable", sa.Double(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("needed_seeds_low", sa.Integer(), nullable=True),
        sa.Column("needed_seeds_high", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("compared_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(verdict is null) <> (reason is null)", name="comparison_reason_check"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["hpopt.study.study_id"], name="comparison_study_id_fkey", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_id", "position", name="comparison_pkey"),
        schema="hpopt",
    )


def downgrade() -> None:
    views.drop_views(op.get_bind())
    op.drop_table("comparison", schema="hpopt")
    op.drop_index("answer_confirmation_id_idx", table_name="answer", schema="hpopt")
    op.drop_table("answer", schema="hpopt")
    op.drop_table("finding", schema="hpopt")
    op.drop_index("rung_study_id_fraction_value_idx", table_name="rung", schema="hpopt")
    op.drop_table("rung", schema="hpopt")
    op.drop_index("evaluation_attempt_id_idx", table_name="evaluation", schema="hpopt")
    op.drop_table("evaluation", schema="hpopt")
    op.drop_index("attempt_requeued_idx", table_name="attempt", schema="hpopt")
    op.drop_index("attempt_open_idx", table_name="attempt", schema="hpopt")
    op.drop_index("attempt_worker_id_idx", table_name="attempt", schema="hpopt")
    op.drop_index("attempt_study_id_idx", table_name="attempt", schema="hpopt")
    op.drop_table("attempt", schema="hpopt")
    op.drop_index("worker_study_id_idx", table_name="worker", schema="hpopt")
    op.drop_table("worker", schema="hpopt")
    op.drop_index("study_change_study_id_idx", table_name="study_change", schema="hpopt")
    op.drop_table("study_change", schema="hpopt")
    op.drop_index("study_root_id_idx", table_name="study", schema="hpopt")
    op.drop_index("study_parent_id_idx", table_name="study", schema="hpopt")
    op.drop_table("study", schema="hpopt")
