#!/bin/sh
# Start PgBouncer with the passwords of its clients from their secrets. PgBouncer needs the passwords themselves and not
# hashes, because it also authenticates to Postgres with them.
set -eu
umask 077
for user in worker reader; do
    sed "s/\"/\"\"/g; s/.*/\"$user\" \"&\"/" "/run/secrets/$user-password"
    echo
done > /tmp/userlist.txt
exec pgbouncer /etc/hpopt/pgbouncer.ini
