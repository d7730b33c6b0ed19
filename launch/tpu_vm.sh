#!/usr/bin/env bash
# Run on Cloud TPU VMs of a queued resource. Every command can be repeated.
set -euo pipefail
shopt -s inherit_errexit
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/settings.sh
source "$ROOT/launch/settings.sh"

usage() {
  cat <<'END'
usage: launch/tpu_vm.sh COMMAND

  create           queue for SLICES slices of ACCELERATOR_TYPE
  wait             wait until they are ready
  install          copy this tree, committed or not, to every machine and install it
  run [FLAGS]      start `memjax train` on every machine, with these flags added
  watch [FLAGS]    all of these, repeated after a preemption, until the run is finished
  status           state of queue, machines and processes
  logs [--collect] follow the first machine, or copy all logs and the results to LOGS
  stop             save the step in progress and end the run; end a watch first
  delete           delete the queued resource and its machines
END
}

WORKER='bash memjax/src/launch/worker.sh'
# Files that the machines need.
SHIPPED=(LICENSE README.md configs launch memjax pyproject.toml requirements.txt setup.py)

SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

# Output of a dry run, also inside command substitutions.
exec 3>&1

# Call gcloud. A dry run prints the call instead, and returns no output.
cloud() {
  local command=(gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE") line
  if [[ -n $DRY_RUN ]]; then
    printf -v line '%q ' "${command[@]}"
    echo "$line" >&3
  else
    "${command[@]}"
  fi
}

# State of the queued resource, or nothing if it does not exist. `describe` would fail
# then, with the same status as for any other error; `list` does not.
queue_state() {
  cloud queued-resources list --filter="name~/$RUN_NAME\$" --format='value(state.state)'
}

# A slice is a node. gcloud names the nodes of several slices itself.
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

# State in one or two words: absent, lost, ready, or the state of queue or machines.
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
  # A queued resource can stay ACTIVE for a while after its machines are gone.
  if grep -qxE 'PREEMPTED|TERMINATED' <<<"$nodes"; then
    echo lost
  elif [[ -n $DRY_RUN ]] || (($(grep -cx READY <<<"$nodes") == SLICES)); then
    echo ready
  else
    echo "machines: ${nodes//$'\n'/ }"
  fi
}

# `each_node FUNCTION ARGUMENT` calls FUNCTION NODE ARGUMENT for all slices at once. It fails if one
# fails. (`queued-resources ssh` handles all in one call, but skips unreachable nodes silently.)
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
    log "$RUN_NAME exists already: $state"
    return
  fi
  ((SLICES == 1)) || nodes=(--node-count="$SLICES")
  [[ $CAPACITY == on-demand ]] || capacity=("--$CAPACITY")
  read -ra more <<<"$CREATE_FLAGS"
  cloud queued-resources create "$RUN_NAME" --accelerator-type="$ACCELERATOR_TYPE" \
    --runtime-version="$RUNTIME_VERSION" "${nodes[@]}" "${capacity[@]}" "${more[@]}"
}

await() {
  local where
  while :; do
    where=$(standing)
    case $where in
      ready) return ;;
      absent) fail "$RUN_NAME is not there; launch/tpu_vm.sh create" ;;
      lost)
        fail "$RUN_NAME was preempted or could not be had; launch/tpu_vm.sh delete, then create"
        ;;
    esac
    log "$RUN_NAME: $where"
    sleep "$POLL_SECONDS"
  done
}

# Write the archive of shipped files and its version to the folder PACKED. The version is git's hash
# of these files, committed or not, and of SETUP. The index of the checkout does not change.
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
    log "$version is installed already"
    return
  fi
  each_node node_copy "$PACKED/memjax.tar.gz"
  printf -v words ' %q' "$version" "$SETUP"
  on_workers "rm -rf memjax/src && mkdir -p memjax/src && tar -xzf memjax.tar.gz -C memjax/src \
&& $WORKER install$words"
}

run() {
  local words
  need_bucket
  printf -v words ' %q' train --config="$CONFIG" --workdir="$WORKDIR" "$@"
  on_workers "$WORKER run$words"
}

# State of the processes in one word: running, finished, refused (invalid input, a restart cannot
# help), stopped, none, unknown.
progress() {
  local lines
  mkdir -p "$LOGS"
  lines=$(on_workers "$WORKER status 2>/dev/null || echo none" 2>>"$LOGS/gcloud.log") || {
    log "not all machines answer; see $LOGS/gcloud.log"
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

# Run a command of this script; a failure is logged and does not exit.
try() {
  "$BASH" "${BASH_SOURCE[0]}" "$@" || {
    log "$1 failed"
    return 1
  }
}

watch() {
  local where left=$MAX_RESTARTS begun=
  need_bucket
  # A run keeps the sources it began with, also if the tree changes meanwhile.
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
      # A run that ended before this watch may be another one; a finished one restarts for nothing.
      finished | refused) [[ -n $begun ]] || where=none ;;
    esac
    log "$RUN_NAME: $where"
    case $where in
      finished)
        logs --collect
        return
        ;;
      refused) fail "memjax refused to run; see launch/tpu_vm.sh logs" ;;
      lost | stopped)
        ((left > 0)) ||
          fail "$RUN_NAME was restarted $MAX_RESTARTS times; see launch/tpu_vm.sh logs"
        left=$((left - 1))
        ;;
    esac
    case $where in
      absent) try create ;;
      lost) try delete && try create ;;
      none | stopped) try install && try run "$@" && begun=yes ;;
    esac || true # the next iteration tries again
    sleep "$POLL_SECONDS"
  done
}

status() {
  local where
  where=$(standing)
  log "$RUN_NAME: $where"
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
      # Eight at a time; a machine without a log does not stop the others.
      ((worker % 8)) || wait
      cloud tpu-vm scp "$node:memjax/run.log" "$LOGS/$node-$worker.log" --worker="$worker" &
    done
    wait
  done
  # The first process writes the results, to its own disk.
  cloud tpu-vm ssh "$first" --worker=0 --command="$WORKER results ${WORKDIR#*://}"
  cloud tpu-vm scp "$first:memjax/results.tar.gz" "$LOGS/results.tar.gz" --worker=0
  [[ -n $DRY_RUN ]] || tar -xzf "$LOGS/results.tar.gz" -C "$LOGS/results"
  log "logs and results are in $LOGS"
}

stop() { on_workers "$WORKER stop"; }

delete() {
  local state
  state=$(queue_state)
  if [[ -z $state && -z $DRY_RUN ]]; then
    log "$RUN_NAME is not there"
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
