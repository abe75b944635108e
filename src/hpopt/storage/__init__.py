"""The only door to Postgres: connections, migrations, studies, attempts and queries."""
