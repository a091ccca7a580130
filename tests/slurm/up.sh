#!/usr/bin/env bash
# A real Slurm on this one machine, for tests/end_to_end/test_slurm.py: munged, slurmctld and slurmd on the loopback address,
# with configuration, key, state, spool and logs in the folder that is given. As root it installs Debian's packages
# where they are absent; beyond them nothing outside the folder is written. Prints the line that a shell needs:
#   eval "$(tests/slurm/up.sh build/slurm)" && sinfo
# A second call leaves what runs alone and starts what does not. tests/slurm/down.sh FOLDER stops it.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
export PATH="$PATH:/usr/sbin:/sbin"

lacking() { for tool in munged slurmctld slurmd sbatch; do command -v "$tool" >/dev/null || echo "$tool"; done; }

if [ -n "$(lacking)" ]; then
    # Debian would start its own munged, with its own key; RUNLEVEL makes invoke-rc.d leave that alone.
    { [ "$(id -u)" = 0 ] && apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null ||
        { echo "slurm  $(lacking | xargs) not there and cannot be installed (Debian: apt-get install slurm-wlm munge)" >&2; exit 1; }
fi

mkdir -p "$1" && folder="$(cd "$1" && pwd)"
export SLURM_CONF="$folder/slurm.conf"
mkdir -p "$folder/state" "$folder/spool"
# munged refuses a folder that others can write to; a socket's path has room for 107 characters.
chmod 755 "$folder"
socket="$folder/munge.sock"
[ "${#socket}" -le 107 ] || { echo "slurm  $socket is too long for a socket; give a shorter folder" >&2; exit 1; }

# By its name too: after a restart of the machine the number may be another's. Z: dead, and not yet collected.
alive() { ps -o s=,comm= -p "$(cat "$folder/$1.pid" 2>/dev/null)" 2>/dev/null | grep -q "^[^Z] $1\$"; }

if [ ! -s "$folder/munge.key" ]; then
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
fi
if [ ! -s "$SLURM_CONF" ]; then
    # Free ports, so that neither a Slurm of the machine's own nor a second folder is in the way.
    read -r controller node < <(python3 -c '
import socket
a, b = socket.socket(), socket.socket()
a.bind(("127.0.0.1", 0)), b.bind(("127.0.0.1", 0))
print(a.getsockname()[1], b.getsockname()[1])')
    # Listen on the loopback address only, where the machine's name leads there; a name that nothing resolves would end
    # the daemons, which then listen everywhere and answer those who have the key.
    loopback=
    case "$(getent ahostsv4 "$(hostname)")" in 127.*) loopback=CommunicationParameters=NoInAddrAny,NoCtldInAddrAny ;; esac
    cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$controller
SlurmdPort=$node
$loopback
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
# A requeued job waits until its first credential has expired: 120 s unless said otherwise, 5 s at least.
AuthInfo=socket=$socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
# Nothing here needs cgroups, which a container seldom lends.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Memory is watched instead, and a step that has more than it asked for is killed at the next look.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=256
# No database: sacct has nothing to say; squeue and scontrol show a job until MinJobAge (s) after its end.
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobcomp.txt
MinJobAge=300
JobRequeue=1
MailProg=/bin/true
KillWait=5
# Look for work more often: an array of 24 short jobs took 28 s without this line, 6 to 12 s with it.
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
$(slurmd -C | head -1 | sed 's/NodeName=[^ ]*/& NodeAddr=127.0.0.1/') State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
fi

# --force: a group may write to the checkout above the folder, which munged takes amiss; the key is for tests alone.
alive munged || munged --force --key-file="$folder/munge.key" --socket="$socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" 2>>"$folder/munged.log"
# A daemon that does not come up is started again. Each question has its own limit: unanswered, sinfo asks for minutes.
for ((SECONDS = 0; SECONDS < 30; )); do
    for daemon in slurmctld slurmd; do alive "$daemon" || "$daemon" >>"$folder/start.log" 2>&1 || true; done
    if timeout 3 sinfo --noheader --format=%T 2>/dev/null | grep -qE '^(idle|mixed|allocated)$'; then
        echo "export SLURM_CONF=$(printf %q "$SLURM_CONF")"
        exit
    fi
    sleep 0.5
done
echo "slurm  no node is ready after 30 s; last words of $folder/*.log:" >&2
tail -n 5 "$folder"/*.log >&2
exit 1
