#!/bin/sh
# Starts PgBouncer with the worker's password from its secret. PgBouncer wants the password itself, not a hash: it also
# logs in to Postgres with it.
set -eu
umask 077
sed 's/"/""/g; s/.*/"worker" "&"/' /run/secrets/worker-password > /tmp/userlist.txt
exec pgbouncer /etc/hpopt/pgbouncer.ini
