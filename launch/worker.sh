#!/usr/bin/env bash
# The part of launch/tpu_vm.sh that runs on each machine of a TPU, in ~/memjax:
#   src/        the sources, with this file          run.log     output of memjax, of all starts
#   .venv/      memjax, installed                    run.lock    locked while memjax runs
#   installed   the version of both                  pid, ended  process and exit status, last start
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

UV_VERSION=0.13.8

running() { ! flock --nonblock run.lock true; }

# `install VERSION SETUP`. The Python of the image is too old for memjax; uv installs another.
install() {
  if running; then
    echo "launch: memjax is running here; stop it first" >&2
    exit 2
  fi
  PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null ||
    curl -LsSf "https://astral.sh/uv/$UV_VERSION/install.sh" | env UV_NO_MODIFY_PATH=1 sh
  rm -f installed
  uv venv --clear --python 3.11 .venv
  uv pip install --python .venv/bin/python --constraints src/requirements.txt './src[tpu,gcs]'
  ln -sfn src/configs configs
  PATH=$PWD/.venv/bin:$PATH bash -euc "$2"
  echo "$1" >installed
}

# Start memjax unless it runs; return when it runs or has ended.
run() {
  if running; then
    echo "launch: memjax is running here already" >&2
    return
  fi
  rm -f ended pid
  setsid nohup bash src/launch/worker.sh hold "$@" >>run.log 2>&1 </dev/null &
  until [[ -e ended || -e pid ]]; do sleep 0.1; done
}

# Run memjax to its end. At shutdown every process gets SIGTERM; this one stays to record the exit
# status of memjax.
hold() {
  exec 9>run.lock
  # `running` holds the lock for a moment.
  flock --timeout 10 9
  trap : TERM INT HUP
  # Fail without a TPU instead of training on the CPU.
  export JAX_PLATFORMS=tpu,cpu
  local status=0
  (
    echo "$BASHPID" >pid
    exec .venv/bin/memjax "$@"
  ) 9>&- || status=$?
  echo "$status" >ended
}

# SIGTERM: memjax saves the step in progress and exits.
stop() {
  if running; then kill -TERM "$(cat pid)"; fi
}

# `results FOLDER`: pack the files of the run here, except data and checkpoints.
results() {
  mkdir -p "$1"
  # Exit status 1: a file grew while tar read it.
  tar -czf results.tar.gz --exclude=./data --exclude=checkpoints -C "$1" . || (($? == 1))
}

# Print one line: running, exit N, or none if this machine has not started memjax.
status() {
  if running; then
    echo running
  elif [[ -e ended ]]; then
    echo "exit $(cat ended)"
  else
    echo none
  fi
}

"$@"
