"""The names of meters: the last known one of each, taken from the sessions that have one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from airflow_mediation_provider.journal.migrations import NUMBER, TIME, name

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_METER = "mediation_meter"
_KEY = ("conn_id", "meter_id")


def upgrade() -> None:
    """Create the table and fill it: of each meter the name that its session with the latest report has."""
    op.create_table(
        _METER,
        sa.Column("conn_id", name(250), nullable=False),
        sa.Column("meter_id", name(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint(*_KEY, name="pk_mediation_meter"),
    )
    row = sa.table(
        "mediation_session",
        sa.column("id", NUMBER),
        *(sa.column(each, sa.String) for each in (*_KEY, "meter_name")),
        sa.column("last_observed_at", TIME),
    )
    key = [row.c[each] for each in _KEY]
    order = (row.c.last_observed_at.desc(), row.c.id.desc())
    latest = sa.func.row_number().over(partition_by=key, order_by=order).label("latest")
    named = sa.select(*key, row.c.meter_name, row.c.last_observed_at, latest).where(row.c.meter_name != "").subquery()
    columns = (*_KEY, "meter_name", "last_observed_at")
    names = sa.select(*(named.c[each] for each in columns)).where(named.c.latest == 1)
    meters = sa.table(_METER, *(sa.column(each) for each in (*_KEY, "name", "received_at")))
    op.execute(meters.insert().from_select(list(meters.c.keys()), names))


def downgrade() -> None:
    """Remove it: sessions have the names of their own reports."""
    op.drop_table(_METER)
