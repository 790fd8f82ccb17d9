#!/bin/sh
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Run a command on a second lab beside the first: lab/beside.sh NAME COMMAND...
# That lab lives in a network namespace of its own, so its nodes have the same addresses; what it lacks is
# the network outside, so image and runtime have to be built before (`make build`).
set -eu
PATH="$PATH:/usr/sbin:/sbin"
[ $# -ge 2 ] || { echo "usage: lab/beside.sh NAME COMMAND..." >&2; exit 2; }
name="$1"
shift
case "$name" in
  *[!a-z0-9]* | ?????????*) echo "lab: a lab's name is 1 to 8 of a-z and 0-9, not '$name'" >&2; exit 2 ;;
esac
as_root=""
as_user=""
if [ "$(id -u)" -ne 0 ]; then
  as_root="sudo -n --preserve-env"
  as_user="setpriv --reuid=$(id -u) --regid=$(id -g) --init-groups"
fi
[ -e "/run/netns/sparkrig-$name" ] || $as_root ip netns add "sparkrig-$name"
$as_root ip -n "sparkrig-$name" link set lo up
export SPARKRIG_LAB="$name"
# Only the network is another one: with `ip netns exec` podman's mounts would be private to this command as well.
# sudo gives PATH and HOME values of its own, whatever it is told to preserve.
# shellcheck disable=SC2086 # both prefixes are lists of words
exec $as_root nsenter --net="/run/netns/sparkrig-$name" $as_user env PATH="$PATH" HOME="$HOME" "$@"
