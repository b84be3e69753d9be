#!/usr/bin/env bash
# A nightly repair: diagnose the newest checkpoint on new data, look for a repair, keep the patch.
#
#   repair.sh CONFIG CHECKPOINT OUT [more options of 'salmon repair']
#
# Exit code 0: accepted, or nothing to repair. 1: rejected. 2: something is wrong with the input.
set -uo pipefail
config=$1 checkpoint=$2 out=$3
shift 3

salmon repair --config "$config" --ckpt_path "$checkpoint" --out "$out" --quiet "$@"
code=$?

# The report of GitHub Actions and similar systems.
if [ -f "$out/report.md" ] && [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
    cat "$out/report.md" >> "$GITHUB_STEP_SUMMARY"
fi

if [ -f "$out/patch.safetensors" ]; then
    salmon apply --patch "$out/patch.safetensors" --ckpt_path "$checkpoint" --out "$out/repaired.ckpt" || exit 2
    # What it does to the data that the network serves already; the verdict, and the output "status",
    # stay those of the repair.
    GITHUB_OUTPUT="" salmon compare --config "$config" --ckpt_path "$checkpoint" --candidate "$out/patch.safetensors" \
        --new val --reference none --out "$out/comparison" --quiet || true
fi
exit "$code"
