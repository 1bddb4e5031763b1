#!/usr/bin/env bash
# Runs a command to its end: again where it was killed, within hours and money, and stops the pod afterwards if asked.
#   bash scripts/supervise.sh [--max-hours H] [--stop-pod-when-done] [--help] COMMAND...
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
bash "$scripts/startup_script.sh" >&2
eval "$(bash "$scripts/startup_script.sh" --environment)"
export PYTHONPATH="${scripts%/scripts}${PYTHONPATH:+:$PYTHONPATH}"
exec "$MUSIC_VENV/bin/python" -m music_training.supervision "$@"
