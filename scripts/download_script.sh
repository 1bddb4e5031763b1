#!/usr/bin/env bash
# Downloads one source unattended: logs, tries again after a failure, and continues where it stopped.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash scripts/download_script.sh --source fma|jamendo|edm|stems_midi [options]

  --source NAME    what to download
  --subset NAME    FMA: small, medium, large or full; Jamendo: raw_30s or autotagging_moodtheme
  --genres LIST    FMA: genres, names or ids; Jamendo: tags; separated by commas
  --limit N        at most N tracks
  --dest DIR       where the audio goes (default: outputs/downloads/<source>)
  --rounds N       how often a failed run is started again (default: 5, a minute apart)
  --dry-run        show bytes, files and hours, and stop
  -- OPTIONS       anything else goes to python -m music_training.library.sources.<source> (see its --help)

Everything is logged to outputs/logs/download_<source>.log ($MUSIC_OUTPUTS/logs where that is set). It may be killed
and started again at any time; what is there and verified is not fetched again. Exit code: that of the download.
To leave it running:  nohup bash scripts/download_script.sh --source fma --subset large &
TEXT
}

fail() {
  printf 'download: error: %s\n' "$*" >&2
  exit 2
}

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
source='' subset='' genres='' limit='' dest='' rounds=5 options=()
while (($#)); do
  case "$1" in
    --source | --subset | --genres | --limit | --dest | --rounds)
      (($# > 1)) || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --dry-run) options+=(--dry-run) && shift ;;
    --help | -h) usage && exit 0 ;;
    --) shift && options+=("$@") && break ;;
    *) fail "unknown option $1; see --help" ;;
  esac
done

case "$source" in
  fma) [[ -z $subset ]] || options+=(--subset "$subset") ; [[ -z $genres ]] || options+=(--genres "$genres") ;;
  jamendo) [[ -z $subset ]] || options+=(--collection "$subset") ; [[ -z $genres ]] || options+=(--tags "$genres") ;;
  edm | stems_midi) [[ -z $subset$genres ]] || fail "--subset and --genres belong to fma and jamendo" ;;
  '') fail "--source is missing: fma, jamendo, edm or stems_midi" ;;
  *) fail "--source $source: give fma, jamendo, edm or stems_midi" ;;
esac
[[ $rounds =~ ^[1-9][0-9]*$ ]] || fail "--rounds $rounds: give a whole number above 0"
[[ -z $limit ]] || options+=(--limit "$limit")
[[ -z $dest ]] || options+=(--dest "$(realpath -m "$dest")")

python=${MUSIC_PYTHON:-}
if [[ -z $python ]]; then
  python=$(bash "$repository/scripts/startup_script.sh" --where 2>/dev/null)/bin/python
  [[ -x $python ]] || python=$(command -v python3) || fail "no Python; run: bash scripts/startup_script.sh"
fi
outputs=${MUSIC_OUTPUTS:-$repository/outputs}
log=$outputs/logs/download_$source.log
mkdir -p "${log%/*}"
export MUSIC_HEADLESS=1 PYTHONUNBUFFERED=1
cd "$repository"

printf 'download: the log is %s\n' "$log"
for ((round = 1; ; round++)); do
  printf '%s: round %d: %s\n' "$(date '+%F %T')" "$round" "$source ${options[*]:-}" >>"$log"
  code=0
  "$python" -m "music_training.library.sources.$source" ${options[@]+"${options[@]}"} 2>&1 | tee -a "$log" || code=${PIPESTATUS[0]}
  ((code != 0)) || exit 0
  # 130: stopped by hand. A mistake in the options ends with 2 at once, a server's trouble with 2 as well: only the latter is worth a wait.
  ((code != 130)) && ((round < rounds)) && tail -n 1 "$log" | grep -q 'run the same command again\|run it again' || exit "$code"
  printf 'download: failed with %d, again in %s s (round %d of %d)\n' "$code" "${MUSIC_DOWNLOAD_WAIT:-60}" "$round" "$rounds" | tee -a "$log"
  sleep "${MUSIC_DOWNLOAD_WAIT:-60}"
done
