#!/usr/bin/env bash
# What launch/tpu_vm.sh has done on each machine of a TPU, in ~/memjax, where memjax runs:
#   src/        the sources, where this file is      run.log     what memjax said, of all starts
#   .venv/      memjax, installed                    run.lock    locked while memjax runs
#   installed   the version of both                  pid, ended  of the last start: its process, its exit status
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

UV_VERSION=0.13.8

running() { ! flock --nonblock run.lock true; }

# `install VERSION SETUP`. The image's own Python is older than memjax needs; uv brings another.
install() {
  if running; then
    echo "launch: memjax is running here; stop it first" >&2
    exit 2
  fi
  PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || curl -LsSf "https://astral.sh/uv/$UV_VERSION/install.sh" | env UV_NO_MODIFY_PATH=1 sh
  rm -f installed
  uv venv --clear --python 3.11 .venv
  uv pip install --python .venv/bin/python --constraints src/requirements.txt './src[tpu,gcs]'
  ln -sfn src/configs configs
  PATH=$PWD/.venv/bin:$PATH bash -euc "$2"
  echo "$1" >installed
}

# Starts memjax if it does not run, and returns when it runs, or has ended.
run() {
  if running; then
    echo "launch: memjax is running here already" >&2
    return
  fi
  rm -f ended pid
  setsid nohup bash src/launch/worker.sh hold "$@" >>run.log 2>&1 </dev/null &
  until [[ -e ended || -e pid ]]; do sleep 0.1; done
}

# Runs memjax to its end. At shutdown every process gets SIGTERM; this one stays to note how memjax took it.
hold() {
  exec 9>run.lock
  # `running` holds the lock for a moment.
  flock --timeout 10 9
  trap : TERM INT HUP
  # Without a TPU this fails; it must not train on the CPU in its place.
  export JAX_PLATFORMS=tpu,cpu
  local status=0
  (
    echo "$BASHPID" >pid
    exec .venv/bin/memjax "$@"
  ) 9>&- || status=$?
  echo "$status" >ended
}

# SIGTERM: memjax saves the step in progress and leaves.
stop() {
  if running; then kill -TERM "$(cat pid)"; fi
}

# `results FOLDER`: what the run has written here, but for data and checkpoints, in results.tar.gz.
results() {
  mkdir -p "$1"
  # 1: a file grew meanwhile.
  tar -czf results.tar.gz --exclude=./data --exclude=checkpoints -C "$1" . || (($? == 1))
}

# One line: running, exit N, or none where nothing was started since the machine is there.
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
