#!/bin/sh
# Start PgBouncer with the worker's password from its secret. PgBouncer needs the password itself and not a hash, because
# it also authenticates to Postgres with it.
set -eu
umask 077
sed 's/"/""/g; s/.*/"worker" "&"/' /run/secrets/worker-password > /tmp/userlist.txt
exec pgbouncer /etc/hpopt/pgbouncer.ini
