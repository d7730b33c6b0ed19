# shellcheck shell=bash
# shellcheck disable=SC2034
# What all scripts here are told, and how they complain. Every setting may be given in the environment.

# The run. Its name is also that of the queued resource, of the JobSet and of the folder in the bucket.
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

# Not empty: print what would be run outside this machine, and do not run it.
: "${DRY_RUN:=}"

say() { echo "launch: $*" >&2; }

complain() {
  say "$*"
  exit 2
}

# Ends the script if a setting without a default was not given.
need() {
  local name
  for name; do
    [[ -n ${!name} ]] || complain "$name is not set; launch/README.md says what it is, for example: export $name=..."
  done
}

# A folder on one machine is of no use to the others, nor after a preemption.
need_bucket() {
  [[ $WORKDIR == gs://* ]] || complain "WORKDIR=$WORKDIR is not in a bucket; set BUCKET=gs://..."
}

for name in SLICES MAX_RESTARTS POLL_SECONDS PODS_PER_SLICE CHIPS_PER_POD GRACE_SECONDS; do
  [[ ${!name} =~ ^[0-9]+$ ]] || complain "$name=${!name} is not a whole number"
done
((SLICES > 0)) || complain "SLICES=$SLICES; there is at least one"
# Pods are called RUN_NAME-slice-0-0-xxxxx, in at most 63 characters.
[[ $RUN_NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  complain "RUN_NAME=$RUN_NAME; use at most 40 of a-z, 0-9 and -, a letter first and no - last"
[[ $CAPACITY =~ ^(spot|reserved|on-demand)$ ]] || complain "CAPACITY=$CAPACITY; use spot, reserved or on-demand"
unset name
