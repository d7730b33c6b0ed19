#!/usr/bin/env bash
# A run on Google Kubernetes Engine, as the JobSet of launch/jobset.yaml. kubectl must point at a cluster that has JobSet and
# a node pool of the right TPUs for each slice.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/settings.sh
source "$ROOT/launch/settings.sh"

usage() {
  cat <<'END'
usage: launch/gke.sh COMMAND

  render [FLAGS]   print the JobSet; FLAGS are more flags of `memjax train`
  apply [FLAGS]    start it
  status           the JobSet and its pods
  logs             follow the first pod of the first slice
  delete           end it; the step in progress is saved
END
}

cluster() {
  local command=(kubectl --namespace="$NAMESPACE" "$@")
  if [[ -n $DRY_RUN ]]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
}

# The chips of a slice, by its topology: 256 for 16x16.
chips() { echo "$((${GKE_TOPOLOGY//x/ * }))"; }

render() {
  need IMAGE
  need_bucket
  [[ $GKE_TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || complain "GKE_TOPOLOGY=$GKE_TOPOLOGY; it is like 16x16 or 4x4x8"
  (($(chips) == PODS_PER_SLICE * CHIPS_PER_POD)) ||
    complain "GKE_TOPOLOGY=$GKE_TOPOLOGY has $(chips) chips, $PODS_PER_SLICE pods of $CHIPS_PER_POD chips have" \
      "$((PODS_PER_SLICE * CHIPS_PER_POD)); set PODS_PER_SLICE or CHIPS_PER_POD"
  local command=(memjax train --config="$CONFIG" --workdir="$WORKDIR" "$@")
  # shellcheck disable=SC2016
  [[ -z $SETUP ]] || command=(bash -euc "$SETUP"$'\n''exec "$@"' bash "${command[@]}")
  # A JSON list is YAML too, whatever is in the flags.
  COMMAND=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "${command[@]}")
  export RUN_NAME NAMESPACE MAX_RESTARTS SLICES PODS_PER_SLICE CHIPS_PER_POD GRACE_SECONDS SERVICE_ACCOUNT
  export GKE_ACCELERATOR GKE_TOPOLOGY IMAGE COMMAND
  envsubst <"$ROOT/launch/jobset.yaml"
}

apply() {
  local manifest
  manifest=$(render "$@")
  cluster apply --filename=- <<<"$manifest"
}

status() {
  cluster get jobsets "$RUN_NAME"
  cluster get pods --selector="jobset.sigs.k8s.io/jobset-name=$RUN_NAME"
}

logs() {
  local pod="jobset.sigs.k8s.io/jobset-name=$RUN_NAME,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
  cluster logs --selector="$pod" --follow --tail=100
}

delete() { cluster delete jobsets "$RUN_NAME" --ignore-not-found; }

case ${1:-} in
  render | apply | status | logs | delete) "$@" ;;
  -h | --help | help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
