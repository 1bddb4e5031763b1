#!/usr/bin/env bash
# Sets up, then checks style and notebooks and runs the tests.
#   bash scripts/run_tests.sh [--all] [pytest arguments]      --all: also those marked long (kills, faults, full runs)
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
cd "$scripts/.."

selection=(-m "not long" -n auto --dist loadfile)  # a file's tests stay together: they share what is costly to make
if [ "${1:-}" = --all ]; then
  selection=()
  shift
fi

bash scripts/startup_script.sh --dev
bin=$(bash scripts/startup_script.sh --where)/bin

# Two programs that only tests use; where they cannot be had, those tests are skipped and say so.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  missing=()
  command -v chromium >/dev/null || missing+=(chromium)
  [ -x /usr/sbin/sshd ] || missing+=(openssh-server)
  if [ ${#missing[@]} -gt 0 ]; then
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } \
      </dev/null >/dev/null 2>&1 || echo "could not install ${missing[*]}: the tests that use it are skipped"
  fi
fi

export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
unset MUSIC_OUTPUTS MUSIC_FORCE

"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/nbstripout" --verify --keep-id notebooks/*.ipynb
exec "$bin/python" -m pytest "${selection[@]}" "$@"
