#!/usr/bin/env bash
# Starts this pod's part of a training on several GPUs or pods: torchrun with what the cluster says about itself.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash scripts/launch.sh [options] SCRIPT [arguments]        the same command on every pod
       bash scripts/launch.sh [options] dask                      a dask scheduler (first pod) and workers (every pod)

  bash scripts/launch.sh scripts/train_audiocraft.py solver=musicgen model=lm_small ...
  bash scripts/launch.sh scripts/train.py edm_structure data/annotations --run-name mine

  --gpus N        processes on this pod (default: what the cluster says, else its GPUs, else 1)
  --restarts N    how often all processes are started again when one is lost (default 3); needs one volume for all pods
  --dry-run       print the command and stop

What a RunPod Instant Cluster, SkyPilot or dstack sets is understood: NUM_NODES, NODE_RANK, MASTER_ADDR, MASTER_PORT,
NODE_ADDR, NUM_TRAINERS and their SKYPILOT_* and DSTACK_* forms. On other pods set NUM_NODES, NODE_RANK (0 on the first)
and MASTER_ADDR (the first one's address, MASTER_PORT 29500); without them everything runs on this pod.
TEXT
}

fail() {
  printf 'launch: error: %s\n' "$*" >&2
  exit 2
}

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
gpus= restarts=3 dry_run=false
while [ $# -gt 0 ]; do
  case "$1" in
    --gpus | --restarts)
      [[ "${2:-}" =~ ^[0-9]+$ ]] || fail "$1: a number is expected"
      if [ "$1" = --gpus ]; then gpus=$2; else restarts=$2; fi
      shift 2
      ;;
    --dry-run)
      dry_run=true
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    --*) fail "unknown option $1; see bash scripts/launch.sh --help" ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || fail "start what? see bash scripts/launch.sh --help"

# --- What the cluster says ---

nodes=${NUM_NODES:-${SKYPILOT_NUM_NODES:-${DSTACK_NODES_NUM:-1}}}
rank=${NODE_RANK:-${SKYPILOT_NODE_RANK:-${DSTACK_NODE_RANK:-0}}}
first=${MASTER_ADDR:-${PRIMARY_ADDR:-$(head -n 1 <<<"${SKYPILOT_NODE_IPS:-${DSTACK_MASTER_NODE_IP:-}}")}}
port=${MASTER_PORT:-${PRIMARY_PORT:-29500}}
gpus=${gpus:-${NUM_TRAINERS:-${SKYPILOT_NUM_GPUS_PER_NODE:-${DSTACK_GPUS_PER_NODE:-}}}}
if [ -z "$gpus" ] && command -v nvidia-smi >/dev/null; then gpus=$(nvidia-smi -L 2>/dev/null | grep -c ^GPU || true); fi
if [ -z "$gpus" ] || [ "$gpus" = 0 ]; then gpus=1; fi
[[ "$nodes" =~ ^[0-9]+$ && "$rank" =~ ^[0-9]+$ && "$gpus" =~ ^[0-9]+$ ]] || fail "NUM_NODES=$nodes NODE_RANK=$rank: numbers are expected"
[ "$nodes" -gt "$rank" ] || fail "NODE_RANK=$rank: with NUM_NODES=$nodes it is at most $((nodes - 1))"
[ "$nodes" = 1 ] || [ -n "$first" ] || fail "NUM_NODES=$nodes, but MASTER_ADDR is not set: the first pod's address"

# Between pods everything goes through one network interface: the one that leads to the first pod. Elsewhere (the
# container's own network, say) the pods do not see each other.
interface= address=${NODE_ADDR:-}
if [ "$nodes" -gt 1 ]; then
  if command -v ip >/dev/null; then
    if [ "$rank" = 0 ]; then
      interface=$(ip -o addr show to "$first" 2>/dev/null | awk 'NR == 1 { print $2 }')
    else
      interface=$(ip -o route get "$first" 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1)
    fi
    if [ -z "$address" ] && [ -n "$interface" ]; then address=$(ip -o -4 addr show dev "$interface" | awk 'NR == 1 { sub("/.*", "", $4); print $4 }'); fi
  fi
  if [ -z "$address" ] && [ "$rank" = 0 ]; then address=$first; fi
  if [ -n "$interface" ]; then
    export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$interface} GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
  fi
fi

if [ -z "${MUSIC_VENV:-}" ]; then eval "$(bash "$scripts/startup_script.sh" --environment)"; fi
python="$MUSIC_VENV/bin/python"
[ -x "$python" ] || fail "$MUSIC_VENV: no virtual environment there; run bash scripts/startup_script.sh first"
export PYTHONPATH="${scripts%/scripts}${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# --- dask ---

if [ "$1" = dask ]; then
  scheduler="tcp://${first:-127.0.0.1}:${DASK_PORT:-8786}"
  threads=(--nthreads 1 --nworkers "$(nproc)" ${address:+--host "$address"})
  if $dry_run; then
    echo "$python -m distributed.cli.dask_worker $scheduler ${threads[*]}"
    exit 0
  fi
  trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
  trap 'exit 143' TERM
  trap 'exit 130' INT
  if [ "$rank" = 0 ]; then "$python" -m distributed.cli.dask_scheduler --host "${first:-127.0.0.1}" --port "${DASK_PORT:-8786}" --no-dashboard & fi
  "$python" -m distributed.cli.dask_worker "$scheduler" "${threads[@]}" --no-dashboard --death-timeout 600 &
  echo "launch: dask at $scheduler; give it as scheduler=$scheduler; Ctrl-C ends it"
  wait -n
  exit
fi

# --- torchrun ---

command=("$python" -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$gpus" --max-restarts "$restarts")
if [ "$nodes" = 1 ]; then
  command+=(--standalone)
else
  # The first pod keeps the meeting place; the others find it by its address, whatever the pods call themselves.
  # A pod that is lost is waited for as long as its restart may take.
  command+=(--rdzv-backend c10d --rdzv-endpoint "$first:$port" --rdzv-id "${MUSIC_RUN_ID:-music-training}")
  command+=(--rdzv-conf "is_host=$([ "$rank" = 0 ] && echo 1 || echo 0),read_timeout=600,join_timeout=${MUSIC_JOIN_SECONDS:-1800},timeout=${MUSIC_JOIN_SECONDS:-1800}")
  # With torch's shared store a pod that comes back waits for ever for an address that the others do not say again.
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
  if [ -n "$address" ]; then command+=(--local-addr "$address"); fi
fi
command+=("$@")
echo "launch: pod $rank of $nodes, $gpus processes${interface:+, over $interface ($address)}" >&2
if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
exec "${command[@]}"
