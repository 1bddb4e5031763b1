#!/usr/bin/env bash
# Sets up everything the project needs on a fresh machine; run it again at any time, it does only what is missing.
set -euo pipefail

TORCH=2.13.0       # installed where Python has no torch >= 2.6
TORCHAUDIO=2.11.0  # the release for TORCH, as in requirements-nodeps.txt

usage() {
  cat <<'TEXT'
usage: bash scripts/startup_script.sh [--dev] [--pod] [--where] [--environment] [--help]

Installs ffmpeg, libsndfile1, rsync and openssh-client where missing (as root on Debian or Ubuntu; names them
otherwise), makes a virtual environment with everything in requirements*.txt, and adds the Jupyter kernel
"Music training". A Python that has torch 2.6 or newer keeps it. A second call does nothing, in a moment; an
interrupted one is continued.

  --dev          also what the tests need (requirements-dev.txt)
  --pod          also what makes a rented pod a place to work at: logins with $PUBLIC_KEY, JupyterLab with the kernel
                 in place and $JUPYTER_PASSWORD. Implied where this is called as /post_start.sh (a link or a copy)
  --where        print the path of the virtual environment and do nothing else
  --environment  print where things lie on this machine, as lines for a shell, and do nothing else

Environment:
  MUSIC_VENV      where the virtual environment lies (default: .venv in the repository, or
                  ~/.venvs/music-training where the repository is on a volume)
  MUSIC_VOLUME    the folder that outlives a pod's stop (default on a pod: /workspace); data and outputs lie there
  MUSIC_OUTPUTS   where everything is written (default: outputs/ on the volume, or in the repository without one)
  MUSIC_CACHE     downloaded models and packages (default: ~/.cache, on the local disk)
  MUSIC_JUPYTER_PORT, MUSIC_SSH_PORT   8888 and 22
  MUSIC_REPOSITORY   where a copy as /post_start.sh finds the repository (default: music-training/ on the volume)
  MUSIC_PYTHON    the Python to use, 3.10 to 3.12 (default: one with torch, else python3.11, 3.10, 3.12)
  MUSIC_SETUP_GB  free disk space asked for, in GB (default: 6; 12 where a GPU needs the CUDA build of torch)
TEXT
}

say() { printf 'set-up: %s\n' "$*"; }
fail() {
  printf 'set-up: error: %s\n' "$*" >&2
  exit 1
}

# --- A machine that nothing of this can be installed on ---

supported_machine() { # torch has ready-made packages for 64-bit Linux with glibc alone
  local system machine
  system=$(uname -s 2>/dev/null || echo Linux) machine=$(uname -m 2>/dev/null || echo x86_64)
  [ "$system" = Linux ] || fail "this is $system; Linux is needed: a pod, WSL or a container with Debian or Ubuntu"
  case "$machine" in
    x86_64 | aarch64) ;;
    *) fail "this is a $machine; there is no torch for it: x86_64 or aarch64 is needed" ;;
  esac
  if command -v ldd >/dev/null && { ldd --version 2>&1 || true; } | grep -qi musl; then
    fail "this system has the C library musl (Alpine?), for which there is no torch; take an image with Debian or Ubuntu"
  fi
}

# --- Where things lie ---

# Network volumes are slow with the tens of thousands of small files of a virtual environment.
on_network_volume() {
  case "$(stat -f -c %T "$1" 2>/dev/null)" in
    nfs* | fuse | cifs | smb* | ceph | lustre | gpfs | panfs | beegfs | afs | v9fs | 9p) return 0 ;;
  esac
  return 1
}

find_volume() { # what outlives the stop of a pod: the folder that is named, or the usual ones on RunPod or where one is mounted
  local folder places=("${RP_WORKSPACE:-/workspace}" /workspace /runpod-volume)
  if [ -n "${MUSIC_VOLUME:-}" ]; then
    [ -d "$MUSIC_VOLUME" ] && [ -w "$MUSIC_VOLUME" ] || fail "MUSIC_VOLUME=$MUSIC_VOLUME: no folder that this user can write to"
    (cd "$MUSIC_VOLUME" && pwd -P)
    return
  fi
  for folder in "${places[@]}"; do
    if [ -d "$folder" ] && [ -w "$folder" ] &&
      { [ -n "${RUNPOD_POD_ID:-}" ] || [ "$(stat -c %d "$folder")" != "$(stat -c %d "$folder/..")" ]; }; then
      (cd "$folder" && pwd -P)
      return
    fi
  done
}

volume=$(find_volume)
script=$(readlink -f "${BASH_SOURCE[0]}")
repository=$(dirname "$(dirname "$script")")
pod=false
if [ "${0##*/}" = post_start.sh ]; then
  pod=true
  if [ ! -f "$repository/requirements.txt" ]; then # a copy
    repository=${MUSIC_REPOSITORY:-$volume/music-training}
    [ -f "$repository/scripts/startup_script.sh" ] || fail "$repository: the repository is not there; name it in MUSIC_REPOSITORY"
    exec bash "$repository/scripts/startup_script.sh" --pod "$@"
  fi
fi

on_volume() { case "$1/" in "${volume:-/dev/null}"/*) return 0 ;; esac && return 1; }

local_disk() { # a folder of this user that is neither on the volume nor somebody else's
  if [ -w "${HOME:-/dev/null}" ] && ! on_volume "$(cd "$HOME" && pwd -P)"; then printf '%s\n' "$HOME"; else printf '/var/tmp/music-training-%s\n' "$(id -u)"; fi
}

where() {
  if [ -n "${MUSIC_VENV:-}" ]; then
    case "$MUSIC_VENV" in
      /*) printf '%s\n' "$MUSIC_VENV" ;;
      *) printf '%s\n' "$PWD/$MUSIC_VENV" ;;
    esac
  elif on_volume "$repository" || on_network_volume "$repository" || [ ! -w "$repository" ]; then
    printf '%s\n' "$(local_disk)/.venvs/music-training"
  else
    printf '%s\n' "$repository/.venv"
  fi
}

environment() { # what is decided here, as lines for a shell
  local cache=${MUSIC_CACHE:-$(local_disk)/.cache} name value
  printf 'export MUSIC_VENV=%q\n' "$(where)"
  if [ -n "${MUSIC_OUTPUTS:-$volume}" ]; then printf 'export MUSIC_OUTPUTS=%q\n' "${MUSIC_OUTPUTS:-$volume/outputs}"; fi
  for name in HF_HOME=huggingface PIP_CACHE_DIR=pip TORCH_HOME=torch; do
    value=${name%=*}
    value=${!value:-}
    if [ -n "${MUSIC_CACHE:-}" ] || { [ -n "$value" ] && on_volume "$value"; } || { [ -z "$value" ] && [ "$cache" != "${HOME:-}/.cache" ]; }; then
      printf 'export %s=%q\n' "${name%=*}" "$cache/${name#*=}"
    fi
  done
}

dev=false
for argument in "$@"; do
  case "$argument" in
    --dev) dev=true ;;
    --pod) pod=true ;;
    --where | --environment)
      "${argument#--}"
      exit 0
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "unknown option '$argument'; see bash scripts/startup_script.sh --help" ;;
  esac
done

supported_machine
unset PYTHONPATH PYTHONHOME
export PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
venv=$(where)
log="$venv/setup.log"
if [ -n "$volume" ]; then eval "$(environment)"; fi
if $pod; then . "$repository/scripts/pod_services.sh"; fi

# --- Programs of the system ---

root_on_debian() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

temporary=${TMPDIR:-/tmp}
apt_log=$(mktemp 2>/dev/null) || fail "no file can be made in $temporary; free some space there, or set TMPDIR to a folder that can be written to"
trap 'rm -f "$apt_log"' EXIT

apt_install() {
  say "installing with apt: $*"
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update && apt-get install -y --no-install-recommends "$@"; } </dev/null >"$apt_log" 2>&1; then
    fail "apt could not install $* ($(grep -E '^(E|W|Err):?' "$apt_log" | tail -1)); check the network, then run again"
  fi
}

system_programs() {
  local missing=()
  command -v ffmpeg >/dev/null || missing+=(ffmpeg)
  command -v rsync >/dev/null || missing+=(rsync)
  command -v ssh >/dev/null || missing+=(openssh-client)
  if $pod && [ -n "${PUBLIC_KEY:-}" ] && [ "$(id -u)" = 0 ] && [ ! -x /usr/sbin/sshd ]; then missing+=(openssh-server); fi
  if [ "${1:-}" = all ] && ! { PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q 'libsndfile\.so'; }; then
    missing+=(libsndfile1)
  fi
  [ ${#missing[@]} -gt 0 ] || return 0
  if root_on_debian; then
    apt_install "${missing[@]}"
  elif [[ " ${missing[*]} " == *" ffmpeg "* ]]; then
    fail "missing: ${missing[*]}; ask for root: apt-get install ${missing[*]} (ffmpeg is needed, the others for backups and old systems)"
  else
    say "missing, needed only for backups and old systems: ${missing[*]} (as root: apt-get install ${missing[*]})"
  fi
}

# --- The fast path: nothing has changed since the last set-up ---

key() { # of everything that decides what is installed; $1: the name of the variant
  {
    printf '%s\n' "$1" "$repository" "${MUSIC_PYTHON:-}"
    grep -E '^(version|home) ' "$venv/pyvenv.cfg"
    (cd "$repository" && cat requirements.txt requirements-nodeps.txt requirements-dev.txt pyproject.toml scripts/startup_script.sh)
  } | sha256sum
}

is_done() { # $1: the variant
  [ -x "$venv/bin/python" ] && [ -f "$venv/.setup-$1" ] && [ "$(cat "$venv/.setup-$1")" = "$(key "$1")" ]
}

variant=run
if $dev; then variant=dev; fi
if $pod; then # first of all, so that a person can log in and look on
  system_programs
  say_decisions
  hand_on_environment
  let_in
fi
if is_done "$variant" || is_done dev; then
  system_programs
  say "up to date: $venv"
  if $pod; then start_jupyter; fi
  exit 0
fi

# --- Python ---

python_version() { # of $1, as "3.11", nothing where it does not run
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

torch_of() { # the version of torch that $1 has, if it is 2.6 or newer; "old X" for an older one
  "$1" -c '
import importlib.metadata
try:
    version = importlib.metadata.version("torch")
except importlib.metadata.PackageNotFoundError:
    raise SystemExit
new = tuple(int(part) for part in version.split("+")[0].split(".")[:2]) >= (2, 6)
print(version if new else "old " + version)' 2>/dev/null || true
}

if [ -n "${MUSIC_PYTHON:-}" ]; then
  command -v "$MUSIC_PYTHON" >/dev/null || fail "MUSIC_PYTHON=$MUSIC_PYTHON: no such program; name a Python 3.10, 3.11 or 3.12"
  case "$(python_version "$MUSIC_PYTHON")" in
    3.10 | 3.11 | 3.12) python=$MUSIC_PYTHON ;;
    *) fail "MUSIC_PYTHON=$MUSIC_PYTHON is $("$MUSIC_PYTHON" --version 2>&1 | head -1); Python 3.10, 3.11 or 3.12 is needed" ;;
  esac
else
  python=
  for candidate in python3.11 python3.10 python3.12 python3 python; do
    case "$(python_version "$candidate")" in
      3.10 | 3.11 | 3.12) ;;
      *) continue ;;
    esac
    python=${python:-$candidate}
    case "$(torch_of "$candidate")" in
      [0-9]*)
        python=$candidate
        break
        ;;
    esac
  done
  [ -n "$python" ] || fail "no Python 3.10, 3.11 or 3.12 found (python3 is $(python3 --version 2>&1 | head -1)); install one or name it in MUSIC_PYTHON"
fi
python=$("$python" -c 'import sys; print(sys.executable)')
version=$(python_version "$python")
torch=$(torch_of "$python")

# --- Disk ---

parent=$(dirname "$venv")
if ! mkdir -p "$parent" 2>/dev/null || [ ! -w "$parent" ]; then fail "cannot write to $parent; name another place in MUSIC_VENV"; fi
if [ ! -f "$venv/pyvenv.cfg" ] && [ ! -f "$venv/.music-training" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
  fail "$venv exists and is not a virtual environment; name another place in MUSIC_VENV"
fi
case "$torch" in [0-9]*) needed=6 ;; *) if command -v nvidia-smi >/dev/null; then needed=12; else needed=6; fi ;; esac
needed=${MUSIC_SETUP_GB:-$needed}
[[ "$needed" =~ ^[0-9]+$ ]] || fail "MUSIC_SETUP_GB=$needed: a whole number of GB is expected"
free=$(($(df -Pk "$parent" | awk 'NR == 2 { print $4 }') / 1000000))
used=$(($(du -sk "$venv" 2>/dev/null | cut -f1 || echo 0) / 1000000)) # what an unfinished set-up already took
[ $((free + used)) -ge "$needed" ] || fail "$free GB free at $parent, $needed GB needed; free some, or name another place in MUSIC_VENV"
entries=$(df -Pi "$parent" 2>/dev/null | awk 'NR == 2 && $2 > 0 { print $4 }') # nothing where a file system counts no inodes
if [[ "$entries" =~ ^[0-9]+$ ]] && [ "$needed" -gt 0 ] && [ ! -d "$venv" ] && [ "$entries" -lt 80000 ]; then
  fail "only $entries more files can be made at $parent (inodes), about 80000 are needed; delete small files, or name another place in MUSIC_VENV"
fi

# --- From here on one set-up at a time ---

exec 9>"$venv.lock"
if command -v flock >/dev/null && ! flock -n 9; then
  say "another set-up of $venv is under way; waiting for it"
  flock 9
  if is_done "$variant"; then
    say "up to date: $venv"
    if $pod; then start_jupyter; fi
    exit 0
  fi
fi

SECONDS=0
system_programs all

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  if ! root_on_debian; then fail "Python $version cannot make virtual environments; as root: apt-get install python$version-venv"; fi
  apt_install "python$version-venv"
fi

say "Python $version ($python), virtual environment $venv"
if [ -z "${MUSIC_VENV:-}" ] && [ "$venv" != "$repository/.venv" ]; then
  say "the repository is on a volume, so the virtual environment lies on the local disk"
fi

# --- The virtual environment ---

site_packages=()
case "$torch" in
  [0-9]*)
    say "keeping the torch $torch that Python has"
    site_packages=(--system-site-packages)
    ;;
  old*) say "Python's torch ${torch#old } is older than 2.6: installing torch $TORCH inside the virtual environment" ;;
  *) say "installing torch $TORCH" ;;
esac

if [ -f "$venv/pyvenv.cfg" ]; then
  wanted=$([ ${#site_packages[@]} -gt 0 ] && echo true || echo false)
  if [ "$(python_version "$venv/bin/python")" != "$version" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
    ! grep -qx "include-system-site-packages = $wanted" "$venv/pyvenv.cfg"; then
    say "the virtual environment is for another Python or was left half made: making it anew"
    rm -rf "$venv"
  fi
fi
if [ ! -f "$venv/pyvenv.cfg" ]; then
  mkdir -p "$venv"
  : >"$venv/.music-training" # tells a half made environment from a foreign folder
  "$python" -m venv "${site_packages[@]}" "$venv" >"$apt_log" 2>&1 || fail "could not make $venv: $(tail -1 "$apt_log")"
fi
"$venv/bin/python" -c '' 2>/dev/null ||
  fail "programs at $venv cannot be started (is that file system mounted with noexec?); name another place in MUSIC_VENV"
rm -f "$venv/.setup-run" "$venv/.setup-dev"
: >"$log"

# A torch that the new environment does not see (it belongs to another virtual environment) cannot be kept.
case "$torch" in
  [0-9]*) [ "$(torch_of "$venv/bin/python")" = "$torch" ] || torch= ;;
  *) torch= ;;
esac

# A killed pip leaves packages that look installed but lack files: forget them, so that they are installed again.
"$venv/bin/python" - <<'PYTHON'
import importlib.metadata, pathlib, shutil, sys, sysconfig

for name in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
    site = pathlib.Path(name)
    for left in site.glob("~*"):
        shutil.rmtree(left, ignore_errors=True)
    for folder in site.glob("*.dist-info"):
        files = importlib.metadata.PathDistribution(folder).files
        removed_on_purpose = folder.name.startswith("torchaudio-")
        if files is None or not (removed_on_purpose or all(file.suffix == ".pyc" or file.locate().exists() for file in files)):
            shutil.rmtree(folder)
PYTHON

# What pip says where something is missing, and what it means: a pattern, and the way out. The first that is found counts.
PIP_SAYS=(
  'No space left on device|Disk quota exceeded'
  "the disk is full (%FREE%); free some space, or set TMPDIR to a larger disk"
  'Read-only file system|Permission denied|\[Errno 13\]'
  "a file cannot be written: $venv and ${PIP_CACHE_DIR:-~/.cache/pip} must belong to the user who runs this"
  'CERTIFICATE_VERIFY_FAILED|SSLError'
  "the index's certificate is not accepted: is the clock right (date)? As root: apt-get install ca-certificates"
  '40[137] Client Error|401 Error, Credentials'
  "the package index refuses: look at PIP_INDEX_URL and pip config list (a user name, a proxy?)"
  'Connection|NewConnectionError|Name or service not known|name resolution|timed out|ProxyError'
  "no network: pip cannot reach its package index; check the connection"
  'DO NOT MATCH THE HASHES|BadZipFile|is not a zip file|invalid wheel'
  "what pip downloaded is broken: $venv/bin/python -m pip cache purge"
  'pkg-config is required for building PyAV|Failed building wheel for av([^a-z]|$)|Failed to build .*[ (,]av([ ,)]|$)'
  "there is no ready-made PyAV for %PYTHON%, and building one needs pkg-config and ffmpeg's development files; take Python 3.10, 3.11 or 3.12 (MUSIC_PYTHON)"
  'Python\.h: No such file'
  "a package without a ready-made build for %PYTHON% is compiled here, and Python's headers are missing; as root: apt-get install python%VERSION%-dev, or take Python 3.11 (MUSIC_PYTHON)"
  "(unable to execute|command) '?([^ ']*/)?(gcc|cc|g\\+\\+|c\\+\\+|clang)'? failed: No such file|command '([^ ']*/)?[^ ']*(gcc|cc|g\\+\\+)' failed|error: command 'gcc'|[Uu]nknown compiler|No such file or directory: '(gcc|cc|g\\+\\+)'|no acceptable C compiler"
  "a package without a ready-made build for %PYTHON% is compiled here, and there is no working C compiler; as root: apt-get install build-essential, or take Python 3.11 (MUSIC_PYTHON)"
  "No module named 'torch'"
  "a package wants torch while it is built; only ready-made ones are used here: remove what pip.conf or PIP_* add"
  'numpy\.dtype size changed'
  "a package was compiled for another numpy: delete $venv"
  'requires a different Python|Requires-Python'
  "a package does not take %PYTHON%; take Python 3.10, 3.11 or 3.12 (MUSIC_PYTHON)"
  'No matching distribution found|Could not find a version that satisfies|have no matching distributions available'
  "the package index has none of it for %PYTHON%; if PIP_INDEX_URL names a mirror, try without it, else take Python 3.11 (MUSIC_PYTHON)"
  'ResolutionImpossible|conflicting dependencies'
  "what is kept from the system's Python does not go with requirements.txt: name one without packages in MUSIC_PYTHON"
)

what_pip_means() { # of the log, from line $1 on: the known cause and the way out, in words; nothing where none is known
  local number text tail
  tail=$(tail -n "+$1" "$log")
  for ((number = 0; number < ${#PIP_SAYS[@]}; number += 2)); do
    if grep -qE -- "${PIP_SAYS[number]}" <<<"$tail"; then
      text=${PIP_SAYS[number + 1]}
      text=${text//%PYTHON%/Python $version on $(uname -m)}
      text=${text//%VERSION%/$version}
      text=${text//%FREE%/$(df -Pm "$venv" "$temporary" 2>/dev/null | awk 'NR > 1 { printf "%s%d MB at %s", (NR > 2 ? ", " : ""), $4, $6 }')}
      printf '%s\n' "$text"
      return
    fi
  done
}

pip_install() { # $1: what is installed, in words
  local what=$1 code=0 known first said
  shift
  first=$(($(wc -l <"$log") + 1))
  "$venv/bin/python" -m pip install --progress-bar off --prefer-binary -c "$venv/constraints.txt" "$@" </dev/null >>"$log" 2>&1 || code=$?
  [ "$code" -ne 0 ] || return 0
  known=$(what_pip_means "$first")
  said=$(grep -E '^ *(ERROR|error):' "$log" | tail -1 | cut -c1-200 || true)
  if [ -n "$known" ]; then
    fail "pip could not install $what: $known; then run again (${said:+$said; }all of it: $log)"
  elif [ "$code" -gt 128 ]; then
    fail "pip was ended by signal $((code - 128)) while installing $what (9: most likely for memory; 2 GB are needed); then run again"
  fi
  fail "pip could not install $what: $said (all of it: $log)"
}

printf 'torch==%s\n' "${torch:-$TORCH}" >"$venv/constraints.txt"
# A current pip comes first; where no index answers, that shows at once, and not after minutes of trying.
if ! "$venv/bin/python" -m pip download -q --no-deps --retries 1 --timeout 15 -d "$venv/pip" pip </dev/null >>"$log" 2>&1; then
  known=$(what_pip_means 1)
  fail "${known:-no network: pip cannot reach its package index; check the connection}, then run again (all of it: $log)"
fi
"$venv/bin/python" -m pip install -q --no-index --no-deps "$venv"/pip/pip-*.whl >>"$log" 2>&1 || fail "pip cannot be upgraded: $(tail -1 "$log")"
rm -rf "$venv/pip"

wanted=(-r "$repository/requirements.txt")
if $dev; then wanted+=(-r "$repository/requirements-dev.txt"); fi
if [ -z "$torch" ]; then wanted+=("torch==$TORCH"); fi
say "installing packages (one to a few minutes; log: $log)"
pip_install "the packages of requirements.txt" "${wanted[@]}"

# audiocraft and torchaudio name other versions of torch than the one there is: without their dependencies.
torch=$("$venv/bin/python" -c 'import importlib.metadata; print(importlib.metadata.version("torch"))')
if "$venv/bin/python" -c 'import importlib.metadata; importlib.metadata.version("torchaudio")' 2>/dev/null; then
  sed '/^torchaudio/d' "$repository/requirements-nodeps.txt" >"$venv/nodeps.txt"
else
  IFS=. read -r major minor _ <<<"$torch"
  match=$TORCHAUDIO # the last release; it serves every later torch
  if [ "$major.$minor" != "${TORCH%.*}" ] && [ "$minor" -lt 11 ]; then match="$major.$minor.*"; fi
  sed "s/^torchaudio==.*/torchaudio==$match/" "$repository/requirements-nodeps.txt" >"$venv/nodeps.txt"
fi
pip_install "audiocraft, torchaudio and the project itself" --no-deps --no-build-isolation -r "$venv/nodeps.txt" -e "$repository"

# torchaudio's compiled part links CUDA libraries that a CPU build of torch lacks, and its failing import takes
# transformers and peft down. Without that part torchaudio's Python functions (all that is used here) work.
loads() { "$venv/bin/python" -c 'import torch, torchaudio.functional, numpy, av, soundfile' >>"$log" 2>&1; }
if ! loads; then
  rm -rf "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/torchaudio/lib"
  first=$(($(wc -l <"$log") + 1))
  if ! loads; then
    known=$(what_pip_means "$first")
    fail "what was installed does not load: $(tail -1 "$log")${known:+; $known, then run again} (all of it: $log)"
  fi
fi

if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1 &&
  ! "$venv/bin/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>>"$log"; then
  say "WARNING: torch $torch does not see the GPU (driver too old for it?); take a pod image with torch 2.6 or newer, which is then kept"
fi

"$venv/bin/python" -m ipykernel install --sys-prefix --name music-training --display-name "Music training" >>"$log" 2>&1 ||
  fail "the Jupyter kernel could not be installed: $(tail -1 "$log")"

key "$variant" >"$venv/.setup-$variant.tmp"
mv "$venv/.setup-$variant.tmp" "$venv/.setup-$variant"
say "done in $SECONDS s: torch $torch, activate with: source $venv/bin/activate"
if $pod; then start_jupyter; fi
