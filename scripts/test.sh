#!/usr/bin/env bash
# The tests, in .venv (made on the first call), on two processes; TEST_PROCESSES=4 for another number.
# Further arguments go to pytest: scripts/test.sh -m "not slow" (the inner loop), scripts/test.sh tests/test_ema.py
set -euo pipefail
source "$(dirname "$0")/setup_env.sh"
processes=${TEST_PROCESSES:-2}
for word in "$@"; do
    case $word in tests/*) processes=${TEST_PROCESSES:-0} ;; esac # a file or two: not worth the start of others
done
if [ "$processes" -gt 0 ]; then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    set -- --numprocesses "$processes" --dist loadfile --no-loadscope-reorder "$@"
fi
exec "$PYTHON" -m pytest "$@"
