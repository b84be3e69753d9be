#!/usr/bin/env bash
# A check of a pull request: is the branch's checkpoint as good as the main one?
#
#   compare.sh CONFIG MAIN_CHECKPOINT BRANCH_CHECKPOINT OUT [gates, such as --gate.max_lost 0.01]
#
# Exit code 0: every gate passed. 1: one failed. 2: something is wrong with the input.
set -uo pipefail
config=$1 main=$2 branch=$3 out=$4
shift 4

salmon compare --config "$config" --ckpt_path "$main" --candidate "$branch" --out "$out" --quiet "$@"
code=$?

# The report of GitHub Actions and similar systems.
if [ -f "$out/report.md" ] && [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
    cat "$out/report.md" >> "$GITHUB_STEP_SUMMARY"
fi
exit "$code"
