#!/usr/bin/env bash
# A Slurm cluster on this one machine, for development and tests. It runs the real daemons (munge, MariaDB, slurmdbd,
# slurmctld and one slurmd per node), without systemd and cgroups, started by root or by any other user.
# All files are in one folder. In addition, root adds a line with the node names to /etc/hosts while the cluster is up.
# `slurm/devcluster.sh help` lists the commands.
set -euo pipefail
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"

usage() {
    cat <<'HELP'
Usage: slurm/devcluster.sh COMMAND

  install              get the Debian packages that are missing (as root; 77 = this user or machine cannot)
  up [NODES]           start the daemons that do not run (4 nodes by default), and print the line to eval:
                           eval "$(slurm/devcluster.sh up 4)"
  down [--wipe]        stop everything; with --wipe also delete jobs, accounting and logs
  status               list daemons and nodes; status 0 when all of them are usable
  env                  print the line to eval
  kill-node NAME       power cut: SIGKILL to the node's slurmd, its stepds and every process of their jobs
  start-node NAME      switch the node on again
  stop-ctld, start-ctld    stop or start slurmctld
  stop-dbd, start-dbd      stop or start slurmdbd (accounting)

Jobs: partitions `main` (default) and `preempt` (requeued when `main` needs the node, 5 s after the user signal);
account `research`; QOS `normal` (default, no limits) and `small` (at most 8 jobs of one user at a time).
A job that uses more memory than it requested is killed (memory is sampled every second).

Environment variables (the cluster in DEVCLUSTER_HOME remembers them until it is wiped):
  DEVCLUSTER_HOME      folder for all files; keep the path short (/tmp/core-hpc-devcluster)
  DEVCLUSTER_PORT      first of 2 + NODES ports (27100)
  DEVCLUSTER_PREFIX    node names are PREFIX1, PREFIX2, ... (node)
  DEVCLUSTER_CPUS, DEVCLUSTER_MEM_MB, DEVCLUSTER_GPUS
                       resources of every node (4, 8000, 2); the GPUs are not real
Clusters with different HOME, PORT and PREFIX can run at the same time.
HELP
}

HOME_DIR=${DEVCLUSTER_HOME:-/tmp/core-hpc-devcluster}
CONF=$HOME_DIR/etc/slurm.conf
RUN=$HOME_DIR/run
LOG=$HOME_DIR/log
HOSTS_MARK="# devcluster ($HOME_DIR)"
QOS_SUBMIT_LIMIT=8
CANNOT_INSTALL=77
declare -A setting=([NODES]=4 [PORT]=27100 [PREFIX]=node [CPUS]=4 [MEM_MB]=8000 [GPUS]=2)

say() { printf 'devcluster: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}

# wait_until SECONDS COMMAND...: repeat the command until it succeeds
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# --- settings -----------------------------------------------------------------------------------------------------

load_settings() {
    local key value
    [[ -r $HOME_DIR/settings ]] || return 0
    while IFS='=' read -r key value; do setting[$key]=$value; done <"$HOME_DIR/settings"
}

# settle_settings [NODES]: apply the settings of the environment and of `up`; those of a running cluster cannot change
settle_settings() {
    local key name asked
    for key in "${!setting[@]}"; do
        name=DEVCLUSTER_$key asked=${!name:-}
        [[ $key != NODES ]] || asked=${1:-}
        [[ -n $asked && $asked != "${setting[$key]}" ]] || continue
        ! anything_runs || die "the cluster in $HOME_DIR runs with $key=${setting[$key]}, not $asked: '$0 down' first"
        setting[$key]=$asked
    done
    for key in NODES PORT CPUS MEM_MB GPUS; do
        [[ ${setting[$key]} =~ ^[0-9]+$ ]] || die "$key=${setting[$key]} is not a number"
    done
    [[ ${setting[PREFIX]} =~ ^[a-zA-Z][a-zA-Z0-9]*$ ]] || die "PREFIX=${setting[PREFIX]}: use letters and digits"
    ((setting[NODES] > 0 && setting[CPUS] > 0)) || die "a cluster has at least one node, and a node one CPU"
}

save_settings() {
    local key
    for key in "${!setting[@]}"; do echo "$key=${setting[$key]}"; done >"$HOME_DIR/settings"
}

nodes() {
    local i
    for ((i = 1; i <= setting[NODES]; i++)); do echo "${setting[PREFIX]}$i"; done
}

check_node() {
    local known
    known=$(nodes)
    grep -qxF -- "${1:-}" <<<"$known" || die "no node '${1:-}'; there are: ${known//$'\n'/ }"
}

# Only one command at a time may change a cluster. If the folder is wiped while this one waits, it waits for the new one.
lock() {
    until [[ $HOME_DIR/lock -ef /proc/self/fd/9 ]]; do
        mkdir -p "$HOME_DIR"
        exec 9>"$HOME_DIR/lock"
        flock -w 120 9 || die "another devcluster.sh has been working in $HOME_DIR for 2 minutes"
    done
}

# --- processes ----------------------------------------------------------------------------------------------------
# A daemon has the name of its pid file: munged, mariadbd, slurmdbd, slurmctld, slurmd-NODE. All daemons, and the
# processes of jobs, have SLURM_CONF in their environment. It distinguishes this cluster's processes from those of
# another one, and a stale pid file from a valid one.

is_ours() { # PID DAEMON
    [[ $(cat "/proc/$1/comm" 2>/dev/null) == "${2%%-*}" ]] && grep -qzxF -- "SLURM_CONF=$CONF" "/proc/$1/environ" 2>/dev/null
}

pid_of() { # DAEMON
    local pid=
    [[ -s $RUN/$1.pid ]] && read -r pid <"$RUN/$1.pid" && [[ -n $pid ]] && is_ours "$pid" "$1" && echo "$pid"
}

runs() { pid_of "$1" >/dev/null; }

anything_runs() {
    local daemon
    for daemon in munged mariadbd slurmdbd slurmctld $(nodes | sed 's/^/slurmd-/'); do
        ! runs "$daemon" || return 0
    done
    return 1
}

gone() { ! is_ours "$@"; }

# start DAEMON COMMAND...: a daemon detached from this script's lock, terminal and output
start() {
    local daemon=$1
    shift
    rm -f "$RUN/$daemon.pid"
    setsid "$@" 9>&- </dev/null >>"$LOG/start-$daemon.log" 2>&1 ||
        die "$daemon did not start: $(tail -n 3 "$LOG/start-$daemon.log"); see also $LOG/$daemon.log"
}

stop() { # DAEMON [SIGNAL]
    local pid
    if pid=$(pid_of "$1"); then
        kill -"${2:-TERM}" "$pid" 2>/dev/null || true
        wait_until 15 gone "$pid" "$1" || kill -KILL "$pid" 2>/dev/null || true
    fi
    rm -f "$RUN/$1.pid"
}

# node_processes NODE: slurmd, its stepds (found by their open log file), the processes of jobs (found by their
# environment, so that daemons that a job left behind are found as well), and all descendants of these
node_processes() {
    {
        find /proc/[0-9]*/fd -maxdepth 1 -lname "$LOG/slurmd-$1.log" 2>/dev/null | cut -d/ -f3 | sort -u |
            while read -r pid; do ! grep -qxE 'slurmd|slurmstepd' "/proc/$pid/comm" || echo "root $pid"; done
        grep -lzxF -- "SLURMD_NODENAME=$1" /proc/[0-9]*/environ 2>/dev/null | xargs -r grep -lzxF -- "SLURM_CONF=$CONF" 2>/dev/null |
            sed -E 's|/proc/([0-9]+)/.*|root \1|'
        cat /proc/[0-9]*/stat 2>/dev/null | sed -E 's/^([0-9]+) .*\) (.) ([0-9]+) .*/\2 \1 \3/'
    } | awk '
        $1 == "root" { inside[$2] = 1; next }
        $1 == "Z" { next }
        { parent[$2] = $3 }
        END {
            do {
                grown = 0
                for (pid in parent) if (!(pid in inside) && (parent[pid] in inside)) { inside[pid] = 1; grown = 1 }
            } while (grown)
            for (pid in inside) if (pid in parent) print pid
        }' | sort -n
}

# Stop (freeze) until nothing new appears, then kill, so that a process that forks cannot escape.
kill_node() { # NODE
    local frozen='' now
    now=$(node_processes "$1") || true
    while [[ $now != "$frozen" ]]; do
        xargs -r kill -STOP <<<"$now" 2>/dev/null || true
        frozen=$now
        now=$(node_processes "$1") || true
    done
    xargs -r kill -KILL <<<"$now" 2>/dev/null || true
    rm -f "$RUN/slurmd-$1.pid"
}

# --- configuration ------------------------------------------------------------------------------------------------

write_configuration() {
    local user names i port=${setting[PORT]} nodes=${setting[NODES]} cpus=${setting[CPUS]} mem_mb=${setting[MEM_MB]}
    user=$(id -un)
    names="${setting[PREFIX]}[1-${setting[NODES]}]"
    mkdir -p "$HOME_DIR"/{etc,dev,state/ctld} "$RUN" "$LOG"
    chmod 755 "$HOME_DIR" # otherwise munge refuses its socket
    echo 'CgroupAutomount=no' >"$HOME_DIR/etc/cgroup.conf"
    : >"$HOME_DIR/etc/gres.conf"
    for ((i = 0; i < setting[GPUS]; i++)); do
        ln -sfn /dev/null "$HOME_DIR/dev/gpu$i" # slurmd accepts only character devices
        echo "NodeName=$names Name=gpu File=$HOME_DIR/dev/gpu$i" >>"$HOME_DIR/etc/gres.conf"
    done
    cat >"$CONF" <<CONF
ClusterName=devcluster
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# A requeued job cannot start again before the credentials of its last start have expired (default: 120 s).
AuthInfo=socket=$RUN/munge.socket,cred_expire=5
# Job ids keep rising after --wipe, so that files of old jobs are not mistaken for files of new jobs.
FirstJobId=$(($(date +%s) % 10000000 + 1000))
StateSaveLocation=$HOME_DIR/state/ctld
SlurmdSpoolDir=$HOME_DIR/state/%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd-%n.pid
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdLogFile=$LOG/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimits=NONE

# Processes: no cgroups, no binding to CPUs (the nodes share those of the machine), memory sampled every second.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill

# Scheduling: immediately, at every event, and over all jobs.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,default_queue_depth=10000,partition_job_depth=0,bf_interval=1,bf_resolution=10,bf_max_job_test=5000,bf_max_job_array_resv=1000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=$((mem_mb / cpus))
CompleteWait=0
EpilogMsgTime=0
KillWait=3
GresTypes=gpu
MaxArraySize=20001
MaxJobCount=100000

# Faults: a lost node is noticed after 10 to 20 s, and used again as soon as it answers.
SlurmctldTimeout=10
SlurmdTimeout=10
ReturnToService=2
JobRequeue=1

# Preemption: the user signal of --signal at once, SIGTERM and SIGKILL after the partition's grace time.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 1))
AccountingStoragePass=$RUN/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos

# Nodes may declare more than the machine has, and their names need not resolve.
SlurmdParameters=config_overrides
NodeName=$names NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$((port + 2))-$((port + 1 + nodes))] CPUs=$cpus RealMemory=$mem_mb Gres=gpu:${setting[GPUS]} State=UNKNOWN
PartitionName=main Nodes=$names Default=YES State=UP MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=preempt Nodes=$names State=UP MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
CONF
    (umask 077 && cat >"$HOME_DIR/etc/slurmdbd.conf") <<CONF
AuthType=auth/munge
AuthInfo=socket=$RUN/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + 1))
SlurmUser=$user
LogFile=$LOG/slurmdbd.log
PidFile=$RUN/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=$user
CONF
}

# Node names of the running cluster in /etc/hosts: torch.distributed looks up the name of a job's first node.
hosts_line() { # on|off
    if [[ ! -w /etc/hosts ]]; then
        [[ $1 == off ]] || say "/etc/hosts is not writable: node names do not resolve, and torch cannot join several nodes"
        return 0
    fi
    local hosts=/etc/hosts others line=''
    [[ $1 == off ]] || line="127.0.0.1 $(nodes | tr '\n' ' ')$HOSTS_MARK"
    exec 8<"$hosts"
    flock 8 # another cluster may change the file at the same time
    if [[ -z $line ]] || ! grep -qxF -- "$line" "$hosts"; then
        # overwritten instead of replaced, because the file is a mount point in a container
        others=$(grep -vF -- "$HOSTS_MARK" "$hosts" || true)
        printf '%s\n' "$others" ${line:+"$line"} >"$hosts"
    fi
    exec 8<&-
}

# --- daemons ------------------------------------------------------------------------------------------------------

port_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

port_free() { ! port_answers "$1"; }

check_port_free() { # DAEMON PORT
    wait_until 3 port_free "$2" || # a daemon of this cluster that has just ended may hold it for a moment
        die "port $2 of $1 is taken by another program: set DEVCLUSTER_PORT to the first of $((2 + setting[NODES])) free ports"
}

start_munge() {
    ! runs munged || return 0
    mkdir -p "$HOME_DIR/munge"
    chmod 700 "$HOME_DIR/munge"
    [[ -s $HOME_DIR/munge/key ]] || (umask 077 && head -c 1024 /dev/urandom >"$HOME_DIR/munge/key")
    rm -f "$RUN"/munge.socket*
    start munged munged --force --key-file="$HOME_DIR/munge/key" --seed-file="$HOME_DIR/munge/seed" \
        --socket="$RUN/munge.socket" --pid-file="$RUN/munged.pid" --log-file="$LOG/munged.log"
    wait_until 10 runs munged || die "munged did not start: see $LOG/munged.log"
}

# The database listens only on a unix socket and has one user, the one who runs it: no password, no port.
start_database() {
    ! runs mariadbd || return 0
    local user
    user=$(id -un)
    local options=(--no-defaults --user="$user" --datadir="$HOME_DIR/db" --innodb-log-file-size=8M --innodb-buffer-pool-size=64M
        --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 --skip-log-bin --performance-schema=OFF)
    # One repetition: on a busy machine it has failed once, and nothing is lost.
    [[ -e $HOME_DIR/db/complete ]] || create_database || create_database ||
        die "the database could not be created: $(tail -n 3 "$LOG/mariadbd-bootstrap.log")"
    rm -f "$RUN/mariadbd.pid" "$RUN/db.sock"
    setsid mariadbd "${options[@]}" --skip-networking --socket="$RUN/db.sock" --pid-file="$RUN/mariadbd.pid" \
        9>&- </dev/null >>"$LOG/mariadbd.log" 2>&1 &
    wait_until 60 database_answers || die "MariaDB did not start: see $LOG/mariadbd.log"
}

create_database() { # with `user` and `options` of start_database
    local tables=/usr/share/mysql
    rm -rf "$HOME_DIR/db"
    mkdir -p "$HOME_DIR/db"
    {
        printf '%s;\n' 'CREATE DATABASE mysql' 'USE mysql' "SET @auth_root_socket='$user'"
        cat "$tables/mysql_system_tables.sql" "$tables/mysql_system_tables_data.sql"
    } | mariadbd "${options[@]}" --bootstrap 9>&- >>"$LOG/mariadbd-bootstrap.log" 2>&1 || return
    touch "$HOME_DIR/db/complete"
}

database_answers() { runs mariadbd && [[ -S $RUN/db.sock ]]; }

start_dbd() {
    if ! runs slurmdbd; then
        check_port_free slurmdbd $((setting[PORT] + 1))
        MYSQL_UNIX_PORT=$RUN/db.sock start slurmdbd slurmdbd
    fi
    wait_until 60 port_answers $((setting[PORT] + 1)) || die "slurmdbd did not start: see $LOG/slurmdbd.log"
}

# Create the cluster, the account and its user, and the QOS with a limit, unless they exist.
fill_accounts() {
    wait_until 30 accounts_exist ||
        die "the accounts could not be created: $(tail -n 3 "$LOG/accounts.log" | tr '\n' ' ')(all in $LOG/accounts.log)"
}

accounts_exist() { # makes them if needed; sacctmgr may fail while slurmdbd is starting
    local user
    user=$(id -un)
    [[ -z $(sacctmgr -nP show association user="$user" account=research format=user 2>/dev/null) ]] || return 0
    {
        sacctmgr -i add cluster devcluster || true # an earlier attempt may have added some of these
        sacctmgr -i add qos small MaxSubmitJobsPerUser=$QOS_SUBMIT_LIMIT || true
        sacctmgr -i add account research || true
        sacctmgr -i add user "$user" account=research qos=normal,small defaultqos=normal &&
            sacctmgr -i modify user "$user" set defaultaccount=research
    } >>"$LOG/accounts.log" 2>&1
}

start_ctld() {
    if ! runs slurmctld; then
        check_port_free slurmctld "${setting[PORT]}"
        start slurmctld slurmctld -f "$CONF"
    fi
    wait_until 30 ctld_answers || die "slurmctld did not start: see $LOG/slurmctld.log"
}

ctld_answers() { scontrol ping >/dev/null 2>&1; }

start_slurmd() { # NODE
    ! runs "slurmd-$1" || return 0
    local port=$((setting[PORT] + 1 + ${1#"${setting[PREFIX]}"}))
    check_port_free "slurmd of $1" $port
    mkdir -p "$HOME_DIR/state/$1"
    start "slurmd-$1" slurmd -N "$1" -f "$CONF"
    wait_until 10 port_answers $port || die "slurmd of $1 did not start: see $LOG/slurmd-$1.log"
}

# usable [NODE...]: whether these nodes (default: all) accept jobs. Nodes that are down or drained are resumed.
usable() {
    local node state states wanted=("$@") bad=0
    (($#)) || mapfile -t wanted < <(nodes)
    states=$(sinfo -h -N -o '%N %T' 2>/dev/null) || return 1
    for node in "${wanted[@]}"; do
        state=$(awk -v node="$node" '$1 == node { print $2; exit }' <<<"$states")
        case $state in
        idle | mixed | allocated | completing | planned) continue ;;
        down* | drain*) scontrol update nodename="$node" state=resume 2>/dev/null || true ;;
        esac
        bad=1
    done
    return $bad
}

# --- commands -----------------------------------------------------------------------------------------------------

install() {
    declare -A package=([slurmctld]=slurmctld [slurmd]=slurmd [sbatch]=slurm-client [slurmdbd]=slurmdbd [munged]=munge [mariadbd]=mariadb-server-core)
    local command missing=() log policy=/usr/sbin/policy-rc.d kept=''
    for command in "${!package[@]}"; do
        command -v "$command" >/dev/null || missing+=("${package[$command]}")
    done
    ((${#missing[@]})) || return 0
    if ((EUID != 0)); then
        say "Slurm is not installed and this is not root: run slurm/devcluster.sh install (missing: ${missing[*]})"
        return $CANNOT_INSTALL
    elif ! command -v apt-get >/dev/null; then
        say "Slurm is not installed and there is no apt-get here: install ${missing[*]} with this system's package manager"
        return $CANNOT_INSTALL
    fi
    # Debian's packages run this file to learn whether they may start their services. They must not.
    if [[ -e $policy ]]; then
        kept=$(mktemp "$policy.XXXXXX")
        cp -p "$policy" "$kept"
    fi
    # shellcheck disable=SC2064 # expanded now, because these variables no longer exist when the trap runs
    trap "if [ -n '$kept' ]; then mv -f '$kept' '$policy'; else rm -f '$policy'; fi" EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    say "installing ${missing[*]}"
    log=$(mktemp)
    apt_install "${missing[@]}" >"$log" 2>&1 ||
        { apt-get update && apt_install "${missing[@]}"; } >>"$log" 2>&1 ||
        die "apt-get failed: $(tail -n 3 "$log"); the whole output is in $log"
    rm -f "$log"
}

apt_install() { DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"; }

print_env() { printf 'export SLURM_CONF=%q\n' "$CONF"; }

up() {
    local command node
    for command in slurmctld slurmd slurmdbd sbatch munged mariadbd; do
        command -v $command >/dev/null || die "no $command on this machine: run $0 install"
    done
    settle_settings "$@"
    if ! anything_runs; then
        write_configuration
        save_settings
    fi
    hosts_line on
    start_munge
    start_database
    start_dbd
    fill_accounts
    start_ctld
    for node in $(nodes); do start_slurmd "$node"; done
    wait_until 30 usable || die "not all nodes are usable; see $LOG and: $(sinfo -h -N -o '%N %T' | sort -u | tr '\n' ' ')"
}

no_jobs() { [[ -z $(squeue -h -t running,completing 2>/dev/null) ]]; }

down() {
    local node daemon wipe=${1:-} signal=TERM
    [[ -z $wipe || $wipe == --wipe ]] || die "down accepts only --wipe, not '$wipe'"
    [[ -z $wipe ]] || signal=KILL
    if [[ -z $wipe ]] && runs slurmctld; then # let the accounting record how the jobs end
        timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
        wait_until 8 no_jobs || true
    fi
    for node in $(nodes); do
        stop "slurmd-$node" "$signal"
        kill_node "$node"
    done
    for daemon in slurmctld slurmdbd mariadbd munged; do stop $daemon "$signal"; done
    hosts_line off
    [[ -z $wipe ]] || rm -rf "$HOME_DIR"
}

status() {
    local daemon rc=0
    for daemon in munged mariadbd slurmdbd slurmctld $(nodes | sed 's/^/slurmd-/'); do
        if runs "$daemon"; then
            echo "$daemon runs (process $(pid_of "$daemon"))"
        else
            echo "$daemon DOES NOT RUN"
            rc=1
        fi
    done
    ! runs slurmctld || sinfo -N -o '%N %T %P cpus=%c memory=%m %G' || rc=1
    sinfo -h -N -o '%T' 2>/dev/null | grep -qvxE 'idle|mixed|allocated|completing|planned' && rc=1
    return $rc
}

start_node() {
    start_slurmd "$1"
    wait_until 30 usable "$1" || die "node $1 did not come back: see $LOG/slurmd-$1.log"
}

main() {
    local command=${1:-help}
    shift || true
    # The environment of a surrounding Slurm job and the user's own settings must not affect this cluster.
    unset "${!SLURM@}" "${!SBATCH_@}" "${!SINFO_@}" "${!SQUEUE_@}" "${!SACCT@}"
    export SLURM_CONF=$CONF
    case $command in
    help | -h | --help | install | env | up) ;;
    down) [[ -e $HOME_DIR/settings ]] || return 0 ;;
    status | kill-node | start-node | stop-ctld | start-ctld | stop-dbd | start-dbd)
        [[ -e $HOME_DIR/settings ]] || die "there is no cluster in $HOME_DIR: run $0 up"
        ;;
    *) die "unknown command '$command'; see: $0 help" ;;
    esac
    ((${#HOME_DIR} <= 70)) || die "DEVCLUSTER_HOME is too long for the path of a unix socket: $HOME_DIR"
    [[ $HOME_DIR == /* ]] || die "DEVCLUSTER_HOME is not an absolute path: $HOME_DIR"
    load_settings
    if [[ $command =~ ^(up|down|kill|start|stop) ]]; then lock; fi
    case $command in
    install) install ;;
    env) print_env ;;
    up)
        up "$@" >&2
        print_env
        ;;
    down) down "$@" ;;
    status) status ;;
    kill-node | start-node)
        check_node "${1:-}"
        "${command/-/_}" "$1"
        ;;
    stop-ctld) stop slurmctld ;;
    start-ctld) start_ctld ;;
    stop-dbd) stop slurmdbd ;;
    start-dbd) start_dbd ;;
    *) usage ;;
    esac
}

main "$@"
