#!/usr/bin/env bash
# A run on Cloud TPU VMs, which a queued resource gets. Every command may be given again.
set -euo pipefail
shopt -s inherit_errexit
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/settings.sh
source "$ROOT/launch/settings.sh"

usage() {
  cat <<'END'
usage: launch/tpu_vm.sh COMMAND

  create           queue for SLICES slices of ACCELERATOR_TYPE
  wait             return when they are there
  install          put this tree, as it stands, on every machine
  run [FLAGS]      start `memjax train` on every machine, with more flags if given
  watch [FLAGS]    all of these, and again after a preemption, until the run is done
  status           where queue, machines and processes stand
  logs [--collect] follow the first machine, or copy what all have said, and the results, to LOGS
  stop             save the step in progress and end the run (end a watch first, which would start it again)
  delete           give the machines back
END
}

WORKER='bash memjax/src/launch/worker.sh'
# What runs there; the rest of the tree stays here.
SHIPPED=(LICENSE README.md configs launch memjax pyproject.toml requirements.txt setup.py)

SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

# Where a dry run prints, also while what a function prints is being read.
exec 3>&1

# Every call of gcloud. In a dry run it is printed, and whatever reads it reads nothing.
cloud() {
  local command=(gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE") line
  if [[ -n $DRY_RUN ]]; then
    printf -v line '%q ' "${command[@]}"
    echo "$line" >&3
  else
    "${command[@]}"
  fi
}

# State of the queued resource, or nothing if there is none. To describe one that is not there is an error like any other;
# to list it is not.
queue_state() {
  cloud queued-resources list --filter="name~/$RUN_NAME\$" --format='value(state.state)'
}

# A slice is a node. gcloud names those of several slices itself.
node_names() {
  if ((SLICES == 1)); then
    echo "$RUN_NAME"
  else
    seq -f "$RUN_NAME-%.0f" 0 "$((SLICES - 1))"
  fi
}

node_states() {
  local names
  names=$(node_names | paste -sd '|' -)
  cloud tpu-vm list --filter="name~\"/($names)\$\"" --format='value(state)'
}

# One word or two: absent, lost, ready, or what is waited for.
standing() {
  local queue nodes
  queue=$(queue_state) || return
  if [[ -z $DRY_RUN ]]; then
    case $queue in
      '') echo absent && return ;;
      SUSPENDED | FAILED) echo lost && return ;;
      ACTIVE) ;;
      *) echo "$queue" && return ;;
    esac
  fi
  nodes=$(node_states) || return
  # A queued resource may be ACTIVE for a while after its machines are gone.
  if grep -qxE 'PREEMPTED|TERMINATED' <<<"$nodes"; then
    echo lost
  elif [[ -n $DRY_RUN ]] || (($(grep -cx READY <<<"$nodes") == SLICES)); then
    echo ready
  else
    echo "machines: ${nodes//$'\n'/ }"
  fi
}

# `each_node FUNCTION ARGUMENT` calls FUNCTION NODE ARGUMENT for all slices at once, and fails if one call does.
# (`queued-resources ssh` would take them in one call, but leaves out, without failing, nodes it cannot reach.)
each_node() {
  local node process processes=() failed=0
  for node in $(node_names); do
    "$1" "$node" "$2" &
    processes+=("$!")
  done
  for process in "${processes[@]}"; do
    wait "$process" || failed=1
  done
  return "$failed"
}

node_ssh() { cloud tpu-vm ssh "$1" --worker=all --command="$2"; }
node_copy() { cloud tpu-vm scp "$2" "$1:memjax.tar.gz" --worker=all; }
on_workers() { each_node node_ssh "$1"; }

create() {
  local state nodes=(--node-id="$RUN_NAME") capacity=() more
  state=$(queue_state)
  if [[ -n $state ]]; then
    say "$RUN_NAME exists already: $state"
    return
  fi
  ((SLICES == 1)) || nodes=(--node-count="$SLICES")
  [[ $CAPACITY == on-demand ]] || capacity=("--$CAPACITY")
  read -ra more <<<"$CREATE_FLAGS"
  cloud queued-resources create "$RUN_NAME" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" \
    "${nodes[@]}" "${capacity[@]}" "${more[@]}"
}

await() {
  local where
  while :; do
    where=$(standing)
    case $where in
      ready) return ;;
      absent) complain "$RUN_NAME is not there; launch/tpu_vm.sh create" ;;
      lost) complain "$RUN_NAME was preempted or could not be had; launch/tpu_vm.sh delete, then create" ;;
    esac
    say "$RUN_NAME: $where"
    sleep "$POLL_SECONDS"
  done
}

# Puts what is shipped, and its version, where PACKED says. The version is the name git has for these files as they stand,
# committed or not, and for SETUP; the index of the checkout is left alone.
pack() {
  export PACKED=$SCRATCH
  (
    export GIT_INDEX_FILE=$SCRATCH/index
    git -C "$ROOT" add -- "${SHIPPED[@]}"
    git -C "$ROOT" write-tree >"$PACKED/tree"
  )
  git -C "$ROOT" archive --format=tar.gz --output="$PACKED/memjax.tar.gz" "$(<"$PACKED/tree")"
  echo "$(<"$PACKED/tree")-$(git hash-object --stdin <<<"$SETUP")" >"$PACKED/version"
}

install() {
  local version words
  [[ -n ${PACKED:-} ]] || pack
  version=$(<"$PACKED/version")
  if [[ -z $DRY_RUN ]] && on_workers "grep -qsx $version memjax/installed"; then
    say "$version is installed already"
    return
  fi
  each_node node_copy "$PACKED/memjax.tar.gz"
  printf -v words ' %q' "$version" "$SETUP"
  on_workers "rm -rf memjax/src && mkdir -p memjax/src && tar -xzf memjax.tar.gz -C memjax/src && $WORKER install$words"
}

run() {
  local words
  need_bucket
  printf -v words ' %q' train --config="$CONFIG" --workdir="$WORKDIR" "$@"
  on_workers "$WORKER run$words"
}

# One word for how the processes stand: running, finished, refused (wrong input: again is no use), stopped, none, unknown.
progress() {
  local lines
  mkdir -p "$LOGS"
  lines=$(on_workers "$WORKER status 2>/dev/null || echo none" 2>>"$LOGS/gcloud.log") || {
    say "not all machines answer; $LOGS/gcloud.log says why"
    lines=unknown
  }
  if grep -qxE 'running|unknown' <<<"$lines"; then
    grep -xE -m 1 'running|unknown' <<<"$lines"
  elif grep -qx 'exit 2' <<<"$lines"; then
    echo refused
  elif ! grep -qvx 'exit 0' <<<"$lines"; then
    echo finished
  elif ! grep -qvx none <<<"$lines"; then
    echo none
  else
    echo stopped
  fi
}

# A command of this script that may fail.
try() {
  "$BASH" "${BASH_SOURCE[0]}" "$@" || {
    say "$1 failed"
    return 1
  }
}

watch() {
  local where left=$MAX_RESTARTS begun=
  need_bucket
  # A run goes on with the sources it began with, whatever becomes of the tree meanwhile.
  pack
  if [[ -n $DRY_RUN ]]; then
    create
    await
    install
    run "$@"
    return
  fi
  while :; do
    where=$(standing) || where='gcloud failed'
    [[ $where != ready ]] || where=$(progress)
    case $where in
      running) begun=yes ;;
      # What ended before this watch may have been another run; to start a finished one again does nothing.
      finished | refused) [[ -n $begun ]] || where=none ;;
    esac
    say "$RUN_NAME: $where"
    case $where in
      finished)
        logs --collect
        return
        ;;
      refused) complain "memjax refused to run; launch/tpu_vm.sh logs says why" ;;
      lost | stopped)
        ((left > 0)) || complain "$RUN_NAME was restarted $MAX_RESTARTS times; launch/tpu_vm.sh logs may say why it ends"
        left=$((left - 1))
        ;;
    esac
    case $where in
      absent) try create ;;
      lost) try delete && try create ;;
      none | stopped) try install && try run "$@" && begun=yes ;;
    esac || true # the next round comes to it again
    sleep "$POLL_SECONDS"
  done
}

status() {
  local where
  where=$(standing)
  say "$RUN_NAME: $where"
  [[ $where != ready ]] || on_workers "echo \$(hostname): \$($WORKER status)"
}

logs() {
  local first node workers worker
  first=$(node_names | sed -n 1p)
  if [[ ${1:-} != --collect ]]; then
    cloud tpu-vm ssh "$first" --worker=0 --command='tail -n 100 -F memjax/run.log'
    return
  fi
  mkdir -p "$LOGS/results"
  for node in $(node_names); do
    workers=$(cloud tpu-vm describe "$node" --format='value(networkEndpoints.len())')
    for ((worker = 0; worker < ${workers:-1}; worker++)); do
      # Eight at a time; one that has no log does not keep the others from coming.
      ((worker % 8)) || wait
      cloud tpu-vm scp "$node:memjax/run.log" "$LOGS/$node-$worker.log" --worker="$worker" &
    done
    wait
  done
  # The first process writes what is written once, to its own disk.
  cloud tpu-vm ssh "$first" --worker=0 --command="$WORKER results ${WORKDIR#*://}"
  cloud tpu-vm scp "$first:memjax/results.tar.gz" "$LOGS/results.tar.gz" --worker=0
  [[ -n $DRY_RUN ]] || tar -xzf "$LOGS/results.tar.gz" -C "$LOGS/results"
  say "logs and results are in $LOGS"
}

stop() { on_workers "$WORKER stop"; }

delete() {
  local state
  state=$(queue_state)
  if [[ -z $state && -z $DRY_RUN ]]; then
    say "$RUN_NAME is not there"
    return
  fi
  cloud queued-resources delete "$RUN_NAME" --force --quiet
}

case ${1:-} in
  create | install | run | watch | status | logs | stop | delete) need PROJECT && "$@" ;;
  wait) need PROJECT && await ;;
  -h | --help | help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
