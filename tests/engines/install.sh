#!/usr/bin/env bash
# Install the programs that the engine tests start, on Debian 12 as root.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends slurm-wlm munge
# Other package sources have kubectl too, under another name.
command -v kubectl >/dev/null || apt-get install -y -qq --no-install-recommends kubernetes-client
