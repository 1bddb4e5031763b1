#!/usr/bin/env bash
# From a fresh machine to trained models: the set-up, then the notebooks of a profile. All options go to run_notebooks.py.
#   bash scripts/run_pipeline.sh [--profile P] [--audio-dir DIR] [--help]
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
bash "$scripts/startup_script.sh"
eval "$(bash "$scripts/startup_script.sh" --environment)"
exec "$MUSIC_VENV/bin/python" "$scripts/run_notebooks.py" "$@"
