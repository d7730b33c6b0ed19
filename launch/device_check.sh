#!/usr/bin/env bash
# Check the accelerator of this machine and add the results to docs/benchmarks.md:
#
#   launch/device_check.sh [MINUTES]
#
# Tokens per second, MFU and memory of a model in bfloat16, kernels against plain computations, and
# a run that is killed and resumed. Parts begin within MINUTES (10); a minute later the check is
# ended. Results are in OUT (device.json), also those of a check that did not end.
set -euo pipefail
# shellcheck source=launch/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

minutes=${1:-10}
[[ $minutes =~ ^[1-9][0-9]*$ && $# -le 1 ]] || fail "usage: launch/device_check.sh [MINUTES]"
out=${OUT:-device.json}

status=0
timeout --kill-after=30 "$((minutes + 1))m" \
  python3 -m memjax.performance.device_check --minutes="$minutes" --out="$out" || status=$?
((status != 124)) || log "ended after $((minutes + 1)) minutes; $out has the parts before"
[[ -e $out ]] && python3 docs/make_benchmarks.py --device="$out"
exit "$status"
