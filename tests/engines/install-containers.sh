#!/usr/bin/env bash
# Install what test_containers.py needs, on Debian 12 as root. Build the base images from Debian's packages, under the
# names of the upstream images, where they are missing: no registry may be reachable.
set -euo pipefail
cd "$(dirname "$0")"
export DEBIAN_FRONTEND=noninteractive CONTAINERS_CONF=$PWD/containers.conf

apt-get update -qq -o DPkg::Lock::Timeout=300
apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends \
    podman buildah runc netavark aardvark-dns iptables uidmap debootstrap catatonit
command -v kubectl > /dev/null || apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends kubernetes-client

if ! podman image exists python:3.11-slim-bookworm; then
    root=$(mktemp -d)
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root"
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    tar -C "$root" -c . | podman import - debian:bookworm-slim
    podman tag debian:bookworm-slim python:3.11-slim-bookworm
    rm -rf "$root"
fi
podman image exists postgres:18-bookworm || podman build --tag postgres:18-bookworm postgres
