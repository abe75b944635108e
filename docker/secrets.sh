#!/bin/sh
# Write the passwords of compose.yaml into a folder, by default ./secrets. Existing ones are not overwritten.
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
# Containers read the files as users of their own; the mode of the folder keeps other users of this machine out.
chmod 700 "$folder"
umask 022
cd "$folder"
for user in owner worker reader dashboard; do
    test -e "$user-password" || head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$user-password"
done
# libpq reads a password file only if it belongs to the reader, but any service file.
for user in owner worker reader; do
    { echo '[hpopt]'; printf 'password='; cat "$user-password"; echo; } > "$user-service"
done
