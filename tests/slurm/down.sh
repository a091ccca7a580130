#!/usr/bin/env bash
# Ends the jobs and the daemons that tests/slurm/up.sh started in the folder that is given. The folder stays, with its
# logs, and up.sh starts from its state again.
set -uo pipefail
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
folder="$(cd "$1" && pwd)" || exit 1
export SLURM_CONF="$folder/slurm.conf"
# By its name too: after a restart of the machine the number may be another's. Z: dead, and not yet collected.
alive() { ps -o s=,comm= -p "$(cat "$folder/$1.pid" 2>/dev/null)" 2>/dev/null | grep -q "^[^Z] $1\$"; }

# Jobs outlive the node daemon, so they go first.
if alive slurmctld; then
    timeout 10 squeue --noheader --format=%A | sort -u | timeout 10 xargs --no-run-if-empty scancel
    for _ in $(seq 40); do [ -z "$(timeout 10 squeue --noheader)" ] && break; sleep 0.5; done
fi
# slurmctld speaks to slurmd through munged, so munged goes last.
for daemon in slurmd slurmctld munged; do
    alive "$daemon" || continue
    pid="$(cat "$folder/$daemon.pid")"
    kill "$pid"
    for _ in $(seq 40); do alive "$daemon" || break; sleep 0.5; done
    alive "$daemon" && { echo "slurm  $daemon ($pid) does not end; killed" >&2; kill -9 "$pid"; }
done
exit 0
