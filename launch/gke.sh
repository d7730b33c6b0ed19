#!/usr/bin/env bash
# Run on Google Kubernetes Engine, as the JobSet of launch/jobset.yaml. kubectl must point at a
# cluster with JobSet and with a node pool of the right TPUs for each slice.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/settings.sh
source "$ROOT/launch/settings.sh"

usage() {
  cat <<'END'
usage: launch/gke.sh COMMAND

  render [FLAGS]   print the JobSet; FLAGS are added to `memjax train`
  apply [FLAGS]    start it
  status           the JobSet and its pods
  logs             follow the first pod of the first slice
  delete           save the step in progress and end it
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

# Number of chips of a slice from its topology: 256 for 16x16.
chips() { echo "$((${GKE_TOPOLOGY//x/ * }))"; }

render() {
  need IMAGE
  need_bucket
  [[ $GKE_TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
    fail "GKE_TOPOLOGY=$GKE_TOPOLOGY; it is like 16x16 or 4x4x8"
  (($(chips) == PODS_PER_SLICE * CHIPS_PER_POD)) ||
    fail "GKE_TOPOLOGY=$GKE_TOPOLOGY has $(chips) chips, $PODS_PER_SLICE pods of" \
      "$CHIPS_PER_POD chips have $((PODS_PER_SLICE * CHIPS_PER_POD));" \
      "set PODS_PER_SLICE or CHIPS_PER_POD"
  local command=(memjax train --config="$CONFIG" --workdir="$WORKDIR" "$@")
  # shellcheck disable=SC2016
  [[ -z $SETUP ]] || command=(bash -euc "$SETUP"$'\n''exec "$@"' bash "${command[@]}")
  # A JSON list is also valid YAML, for any flags.
  COMMAND=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "${command[@]}")
  export RUN_NAME NAMESPACE MAX_RESTARTS SLICES PODS_PER_SLICE CHIPS_PER_POD GRACE_SECONDS
  export SERVICE_ACCOUNT GKE_ACCELERATOR GKE_TOPOLOGY IMAGE COMMAND
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
  local pod="jobset.sigs.k8s.io/jobset-name=$RUN_NAME,jobset.sigs.k8s.io/job-index=0"
  pod+=",batch.kubernetes.io/job-completion-index=0"
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
