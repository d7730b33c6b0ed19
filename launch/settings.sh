# shellcheck shell=bash
# shellcheck disable=SC2034
# Settings and messages of all scripts here. An environment variable overrides each setting.

# The run. Its name is also the name of the queued resource, of the JobSet and of the folder in
# the bucket.
: "${RUN_NAME:=memjax}"
: "${CONFIG:=configs/scaling.py:1.3b-512x8}"
: "${BUCKET:=}"
: "${WORKDIR:=${BUCKET:-runs}/$RUN_NAME}"
: "${SETUP:=}"
: "${SLICES:=1}"
: "${MAX_RESTARTS:=50}"
: "${MEMJAX:=memjax}"

# Cloud TPU VMs.
: "${PROJECT:=}"
: "${ZONE:=us-west4-a}"
: "${ACCELERATOR_TYPE:=v5litepod-256}"
: "${RUNTIME_VERSION:=v2-alpha-tpuv5-lite}"
: "${CAPACITY:=spot}"
: "${CREATE_FLAGS:=}"
: "${POLL_SECONDS:=60}"
: "${LOGS:=runs/launch/$RUN_NAME}"

# Google Kubernetes Engine.
: "${IMAGE:=}"
: "${NAMESPACE:=default}"
: "${SERVICE_ACCOUNT:=default}"
: "${GKE_ACCELERATOR:=tpu-v5-lite-podslice}"
: "${GKE_TOPOLOGY:=16x16}"
: "${PODS_PER_SLICE:=64}"
: "${CHIPS_PER_POD:=4}"
: "${GRACE_SECONDS:=300}"

# Not empty: print commands for other machines instead of running them.
: "${DRY_RUN:=}"

log() { echo "launch: $*" >&2; }

fail() {
  log "$*"
  exit 2
}

# Exit if a setting without a default is not set.
need() {
  local name
  for name; do
    [[ -n ${!name} ]] || fail "$name is not set; see launch/README.md, then: export $name=..."
  done
}

# Other machines, and machines after a preemption, cannot read a local folder.
need_bucket() {
  [[ $WORKDIR == gs://* ]] || fail "WORKDIR=$WORKDIR is not in a bucket; set BUCKET=gs://..."
}

for name in SLICES MAX_RESTARTS POLL_SECONDS PODS_PER_SLICE CHIPS_PER_POD GRACE_SECONDS; do
  [[ ${!name} =~ ^[0-9]+$ ]] || fail "$name=${!name} is not an integer"
done
((SLICES > 0)) || fail "SLICES=$SLICES; expected at least 1"
# The names of pods, RUN_NAME-slice-0-0-xxxxx, have at most 63 characters.
[[ $RUN_NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  fail "RUN_NAME=$RUN_NAME; use at most 40 of a-z, 0-9 and -, a letter first and no - last"
[[ $CAPACITY =~ ^(spot|reserved|on-demand)$ ]] ||
  fail "CAPACITY=$CAPACITY; use spot, reserved or on-demand"
unset name
