#!/bin/sh
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Install the packages that the lab needs of this machine, if one of their programs is missing.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
set -- podman crun runc mmdebstrap iproute2 openssh-client curl shellcheck util-linux libnuma1 python3-venv
missing=""
for program in podman runc mmdebstrap ip ssh curl shellcheck nsenter; do
  command -v "$program" >/dev/null 2>&1 || missing="$missing $program"
done
# Debian keeps what `python3 -m venv` needs in a package of its own.
python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
# The oracle tests run the nodes' vLLM on this machine as well, and it is linked against libnuma.
ls /usr/lib/*/libnuma.so.1 >/dev/null 2>&1 || missing="$missing libnuma1"
[ -n "$missing" ] || exit 0

as_root=""
if [ "$(id -u)" -ne 0 ]; then
  if ! sudo -n true 2>/dev/null; then
    echo "lab: missing:$missing. Run this as root: apt-get install --no-install-recommends $*" >&2
    exit 1
  fi
  as_root="sudo -n"
fi
echo "lab: installing$missing"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update --quiet=2
$as_root apt-get install --quiet=2 --yes --no-install-recommends "$@" >/dev/null
