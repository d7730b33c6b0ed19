#!/usr/bin/env bash
# Run several processes on the CPU of this machine, to test a multi-process run:
#
#   launch/local_multiprocess.sh 2 train --config=configs/quickstart.py:small --workdir=runs/two
#
# MEMJAX    the command (memjax)               DEVICES   devices of each process (1)
# PORT      port of process 0 (a free one)
# GRACE     seconds between the failure of one process and the kill of the others (30)
#
# Every line of output begins with the number of its process. All processes get SIGINT and SIGTERM.
# A shell starts background jobs of scripts with SIGINT ignored: SIGTERM alone ends them. The exit
# status is that of the first process that failed.
set -euo pipefail
# shellcheck source=launch/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

processes=${1:-}
[[ $processes =~ ^[1-9][0-9]*$ && $# -ge 2 ]] ||
  fail "usage: launch/local_multiprocess.sh PROCESSES COMMAND [FLAGS]"
shift

FREE_PORT='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
# Run a command in its own session, so that Ctrl-C reaches it once, through this script: a second
# Ctrl-C makes memjax exit without saving. The shell ignores SIGINT in background jobs; restore it.
# A file shows that signals reach the process from now on.
ALONE='import os, signal, sys; os.setsid(); signal.signal(signal.SIGINT, signal.SIG_DFL)
open(sys.argv[1], "w").close()
os.execvp(sys.argv[2], sys.argv[2:])'
# Print the lines of pipes, each whole and after the number of its process. Ignore the signals that
# stop the processes, to print their last lines.
PRINT='import signal, sys, threading
lock = threading.Lock()
def relay(path):
    number = path.rpartition("/")[2].split(".")[0].encode()
    for line in open(path, "rb"):
        with lock:
            sys.stdout.buffer.write(b"[%s] %s\n" % (number, line.rstrip(b"\n")))
            sys.stdout.buffer.flush()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
for path in sys.argv[1:]:
    threading.Thread(target=relay, args=(path,)).start()'

port=${PORT:-$(python3 -c "$FREE_PORT")}
read -ra memjax <<<"$MEMJAX"
export JAX_PLATFORMS=cpu JAX_NUM_PROCESSES=$processes
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"

pids=() # of running processes, by number
pipes=()
printer=
status=0
signals=() # that came and were not forwarded yet
stopping=
deadline=

# `forward SIGNAL` sends a signal to the processes; `forward SIGNAL -` to their children too.
forward() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill -s "$1" -- "${2:-}$pid" 2>/dev/null || true
  done
}

scratch=$(mktemp -d)
trap 'forward KILL -; [[ -z $printer ]] || kill -s KILL "$printer" || true; rm -r "$scratch"' EXIT
# The loop below forwards them, once all processes have started: one that the shell has just forked
# loses them.
trap 'stopping=yes; signals+=(TERM)' TERM
trap 'stopping=yes; signals+=(INT)' INT

# C++ writes to standard error in the middle of lines of standard output: a pipe for each.
for ((i = 0; i < processes; i++)); do pipes+=("$scratch/$i.out" "$scratch/$i.err"); done
mkfifo "${pipes[@]}"
python3 -c "$PRINT" "${pipes[@]}" &
printer=$!

for ((i = 0; i < processes; i++)); do
  JAX_PROCESS_ID=$i python3 -c "$ALONE" "$scratch/$i.up" "${memjax[@]}" "$@" \
    </dev/null >"$scratch/$i.out" 2>"$scratch/$i.err" &
  pids[i]=$!
done

for i in "${!pids[@]}"; do
  until [[ -e $scratch/$i.up ]] || ! kill -0 "${pids[i]}" 2>/dev/null; do sleep 0.02 || true; done
done

while ((${#pids[@]})); do
  while ((${#signals[@]})); do
    forward "${signals[0]}"
    signals=("${signals[@]:1}")
  done
  for i in "${!pids[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
    code=0
    wait "${pids[i]}" || code=$?
    # Processes that it left behind would keep its output open.
    kill -s KILL -- "-${pids[i]}" 2>/dev/null || true
    unset "pids[i]"
    if ((code && !status)); then
      status=$code
      log "process $i ended with exit status $code"
      deadline=$((SECONDS + ${GRACE:-30}))
      # After a signal all are exiting already; a second one would interrupt their saving.
      [[ -n $stopping ]] || forward TERM
    fi
  done
  # A process that waits for a dead one may never handle a signal.
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then forward KILL -; fi
  sleep 0.1 || true
done

wait "$printer"
printer=
exit "$status"
