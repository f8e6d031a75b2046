#!/usr/bin/env bash
# Runs every finding in this folder, each in a temporary folder of its own, and prints a table. Needs a package index.
set -u
cd "$(dirname "$0")"
failed=0
printf '%-28s %-8s %s\n' finding state output
for script in *.sh; do
    [ "$script" = run_all.sh ] && continue
    if output=$(bash "$script" 2>&1); then state=holds; else state=CHANGED; failed=1; fi
    printf '%-28s %-8s %s\n' "${script%.sh}" "$state" "$(tail -n 3 <<<"$output" | tr '\n' ';' | cut -c1-150)"
done
exit "$failed"
