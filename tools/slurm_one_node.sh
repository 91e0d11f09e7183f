#!/usr/bin/env bash
# The workflow through a real Slurm on one Debian machine: munged, slurmctld and slurmd as a cluster of one node on loopback.
#
#   make slurm                                          every table and figure on digits; results/slurm
#   make slurm ARGS="results/part only=table1,figure3"  a results folder, then settings as for --config
#
# As root. Missing packages are installed, all files of the cluster are in a temporary folder, and the daemons end with the script.
# The node offers four CPUs for each that the machine has, since profiles/slurm asks for four a job.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin" OMP_NUM_THREADS=1
results="${1:-results/slurm}"
settings=("${@:2}")

if [ "$(id -u)" != 0 ]; then
    echo "The daemons of a cluster need root: run this as root, in a container for instance." >&2
    exit 1
fi
# Without SLURM_CONF, which Snakemake's job steps drop, clients read /etc/slurm and then /run/slurm/conf.
for configured in /etc/slurm/slurm.conf /run/slurm/conf; do
    if [ -e "$configured" ]; then
        echo "$configured exists, so this machine belongs to a cluster: use profiles/slurm there." >&2
        exit 1
    fi
done
if ! type munged slurmctld slurmd sbatch >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends munge slurmctld slurmd slurm-client >/dev/null
fi

cluster="$(mktemp --directory)"
running=()
stop() {
    status=$?
    trap - EXIT
    if [ -n "${workflow:-}" ] && kill "$workflow" 2>/dev/null; then # it ends when its jobs do
        scancel --user=root
        wait "$workflow" || true
    fi
    for process in "${running[@]}"; do
        kill "$process" && wait "$process" || true
    done
    [ "$status" = 0 ] || [ -n "${workflow+started}" ] || tail -n 20 "$cluster"/*.log >&2
    rm -rf /run/slurm/conf "$cluster"
    exit "$status"
}
trap stop EXIT

start() { # NAME COMMAND …: the latest first, as they are stopped
    "${@:2}" >"$cluster/$1.log" 2>&1 &
    running=($! "${running[@]}")
}

head --bytes=1024 /dev/urandom >"$cluster/munge.key"
chmod 400 "$cluster/munge.key"
chmod 711 "$cluster" # the socket is for every user
mkdir -p /run/slurm "$cluster/state" "$cluster/spool"
ln -s "$cluster" /run/slurm/conf
echo "CgroupPlugin=disabled" >"$cluster/cgroup.conf"
cat >"$cluster/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$(hostname --short)(127.0.0.1)
SlurmUser=root
CommunicationParameters=NoInAddrAny
AuthInfo=socket=$cluster/munge.socket
StateSaveLocation=$cluster/state
SlurmdSpoolDir=$cluster/spool
SlurmctldPidFile=$cluster/slurmctld.pid
SlurmdPidFile=$cluster/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
MinJobAge=86400
NodeName=one NodeAddr=127.0.0.1 CPUs=$((4 * $(nproc --all))) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
PartitionName=all Nodes=one Default=YES
END

start munged munged --foreground --key-file="$cluster/munge.key" --socket="$cluster/munge.socket" \
    --pid-file="$cluster/munged.pid" --seed-file="$cluster/munged.seed" --log-file="$cluster/munge.log"
for _ in {1..50}; do [ -S "$cluster/munge.socket" ] || sleep 0.2; done
start slurmctld slurmctld -D -f "$cluster/slurm.conf"
start slurmd slurmd -D -N one -f "$cluster/slurm.conf"
for _ in {1..60}; do [ "$(sinfo --noheader --format=%T 2>&1)" = idle ] || sleep 1; done

sbatch --version
sinfo --format="%9P %5D %5T %4c %m"
# A cluster that keeps no accounts has no sacct: squeue is asked instead, which knows every job for MinJobAge seconds.
snakemake --profile profiles/slurm --slurm-status-command squeue --slurm-init-seconds-before-status-checks 5 \
    --config preset=smoke device=cpu results="$results" "${settings[@]}" &
workflow=$!
wait "$workflow"
workflow=
squeue --states=all --sort=i --format="%.5i %9T %8M %4C %10m %k"
wc --lines "$results"/*/table.csv
