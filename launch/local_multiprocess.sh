#!/usr/bin/env bash
# A run of several processes on the CPU of this machine, to try out what will run on many:
#
#   launch/local_multiprocess.sh 2 train --config=configs/quickstart.py:small --workdir=runs/two
#
# MEMJAX    the command (memjax)               DEVICES   devices of each process (1)
# PORT      where process 0 listens (a free one)
# GRACE     seconds that the others have when one has failed (30)
#
# Every line says which process it is of. SIGINT and SIGTERM go on to all processes. The exit status is that of the first
# process that failed.
set -euo pipefail
# shellcheck source=launch/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

processes=${1:-}
[[ $processes =~ ^[1-9][0-9]*$ && $# -ge 2 ]] || complain "usage: launch/local_multiprocess.sh PROCESSES COMMAND [FLAGS]"
shift

FREE_PORT='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
# Runs a command in a session of its own, where Ctrl-C reaches it once, through this script: to memjax a second one means at
# once. SIGINT has its meaning back, which a shell takes from what it runs beside itself.
ALONE='import os, signal, sys; os.setsid(); signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])'

port=${PORT:-$(python3 -c "$FREE_PORT")}
read -ra memjax <<<"$MEMJAX"
export JAX_PLATFORMS=cpu JAX_NUM_PROCESSES=$processes
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"

pids=() # of those that run, by number
printers=()
status=0
stopping=
deadline=

# `forward SIGNAL` sends it to the processes; with a - before each id, to whatever they have started too.
forward() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill -s "$1" -- "${2:-}$pid" 2>/dev/null || true
  done
}

scratch=$(mktemp -d)
trap 'forward KILL -; rm -r "$scratch"' EXIT
trap 'stopping=yes; forward TERM' TERM
trap 'stopping=yes; forward INT' INT

# Prints lines as they come (awk may wait for many), after the number of their process. The signals that stop the processes
# must leave it to print their last words.
print_lines() {
  local line
  trap '' INT TERM
  while IFS= read -r line || [[ -n $line ]]; do
    printf '[%d] %s\n' "$1" "$line"
  done
}

for ((i = 0; i < processes; i++)); do
  mkfifo "$scratch/$i"
  print_lines "$i" <"$scratch/$i" &
  printers+=("$!")
  JAX_PROCESS_ID=$i python3 -c "$ALONE" "${memjax[@]}" "$@" </dev/null >"$scratch/$i" 2>&1 &
  pids[i]=$!
done

while ((${#pids[@]})); do
  for i in "${!pids[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
    code=0
    wait "${pids[i]}" || code=$?
    # What it may have left behind would hold its output open.
    kill -s KILL -- "-${pids[i]}" 2>/dev/null || true
    unset "pids[i]"
    if ((code && !status)); then
      status=$code
      say "process $i ended with exit status $code"
      deadline=$((SECONDS + ${GRACE:-30}))
      # After a signal all are leaving already, and another would cut their saving short.
      [[ -n $stopping ]] || forward TERM
    fi
  done
  # Those that wait for one that is gone may never come to see a signal.
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then forward KILL -; fi
  sleep 0.1 || true
done

wait "${printers[@]}"
exit "$status"
