"""When a study was last analysed, and how grave each finding is."""

import sqlalchemy as sa

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # They are found again, with their severities, at the next look.
    op.execute("delete from hpopt.finding")
    op.add_column("study", sa.Column("n_analysed", sa.Integer()), schema="hpopt")
    op.add_column("finding", sa.Column("severity", sa.Text(), nullable=False, server_default="note"), schema="hpopt")
    op.create_check_constraint(
        op.f("finding_severity_check"), "finding", "severity in ('error', 'warning', 'note')", schema="hpopt"
    )


def downgrade() -> None:
    op.drop_column("finding", "severity", schema="hpopt")
    op.drop_column("study", "n_analysed", schema="hpopt")
