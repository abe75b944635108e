#!/bin/sh
# Makes the passwords of compose.yaml in a folder, ./secrets if none is named, and leaves those that are there.
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
# Containers read the files under users of their own; the folder keeps everybody else on this machine out.
chmod 700 "$folder"
umask 022
cd "$folder"
for user in owner worker dashboard; do
    test -e "$user-password" || head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$user-password"
done
# libpq reads a password file only where it belongs to the reader, and a service file from anybody.
for user in owner worker; do
    { echo '[hpopt]'; printf 'password='; cat "$user-password"; echo; } > "$user-service"
done
