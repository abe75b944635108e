"""The Postgres server that hpopt starts when no storage URL is given."""
