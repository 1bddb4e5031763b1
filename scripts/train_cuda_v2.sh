#!/bin/bash
# Trains both emotion bridges: manifests, Spectocloud, MIDI generator, export. Without --audio-root and --midi-root the
# manifests that lie under outputs/data/manifests are taken; without those the studio library is composed (with a warning).
#   bash scripts/train_cuda_v2.sh --audio-root ~/music/audio --midi-root ~/music/midi
#   bash scripts/train_cuda_v2.sh --docker --data-mount /mnt/datasets --audio-root /data/audio --midi-root /data/midi
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    sed -n '2,5p' "$0" | sed 's/^# \{0,1\}//'
    cat <<'TEXT'

  --audio-root DIR      folder of audio              --midi-root DIR       folder of MIDI files in matching folders
  --val-split SHARE     for validation (0.05)        --seed N              of the split (42)
  --generate-clouds     precompute the clouds        --clouds-dir DIR      where they go (outputs/data/clouds)
  --skip-manifests      take those that are there    --skip-spectocloud    do not train Spectocloud
  --skip-midi           do not train the MIDI generator
  --skip-export         no ONNX files
  --spectocloud-config FILE, --midi-config FILE      in place of model_config/emotion_bridges/*.yaml
  --gpus N              processes of torchrun (1)
  --docker              build the image of $DOCKERFILE and run in it
  --data-mount DIR      a folder of this machine that the container sees as /data (means --docker)
  Words key=value at the end go to both trainings: training.epochs=20
TEXT
}

fail() { echo "error: $1" >&2; exit 2; }

configs=model_config/emotion_bridges
audio_root="" midi_root="" data_mount="" gpus=1 docker=no
manifests=yes spectocloud=yes midi=yes export=yes
spectocloud_config=$configs/spectocloud_training_config.yaml midi_config=$configs/midi_generator_training_config.yaml
building=() overrides=() inside=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --audio-root | --midi-root | --val-split | --seed | --clouds-dir | --spectocloud-config | --midi-config | --gpus | --data-mount)
            [ $# -gt 1 ] || fail "$1 wants a value"
            [ "$1" = --data-mount ] || inside+=("$1" "$2")
            case $1 in
                --audio-root) audio_root=$2 ;;
                --midi-root) midi_root=$2 ;;
                --spectocloud-config) spectocloud_config=$2 ;;
                --midi-config) midi_config=$2 ;;
                --gpus) gpus=$2 ;;
                --data-mount) data_mount=$2 docker=yes ;;
                *) building+=("$1" "$2") ;;
            esac
            shift 2 ;;
        --generate-clouds) building+=("$1"); inside+=("$1"); shift ;;
        --skip-manifests) manifests=no; inside+=("$1"); shift ;;
        --skip-spectocloud) spectocloud=no; inside+=("$1"); shift ;;
        --skip-midi) midi=no; inside+=("$1"); shift ;;
        --skip-export) export=no; inside+=("$1"); shift ;;
        --docker) docker=yes; shift ;;
        *=*) overrides+=("$1"); inside+=("$1"); shift ;;
        *) fail "$1: unknown option; see --help" ;;
    esac
done

if [ $docker = yes ]; then
    command -v docker >/dev/null || fail "docker is not installed; without --docker and --data-mount the training runs here"
    dockerfile=${DOCKERFILE:-deployment/docker/Dockerfile.cuda}
    [ -f "$dockerfile" ] || fail "$dockerfile: no such file; name one in \$DOCKERFILE, or train without --docker"
    [ -z "$data_mount" ] || [ -d "$data_mount" ] || fail "--data-mount $data_mount: no such folder"
    docker build -f "$dockerfile" -t music-training:v2 .
    mounts=(-v "$PWD:/workspace" --user "$(id -u):$(id -g)" -e HOME=/tmp -e MUSIC_OUTPUTS=/workspace/outputs)
    [ -z "$data_mount" ] || mounts+=(-v "$(realpath "$data_mount"):/data")
    exec docker run --rm --gpus all --ipc=host --shm-size=8g "${mounts[@]}" -w /workspace music-training:v2 bash scripts/train_cuda_v2.sh "${inside[@]}"
fi

venv=${MUSIC_VENV:-.venv}
python=${PYTHON:-$([ -x "$venv/bin/python" ] && echo "$venv/bin/python" || command -v python3)}
if [ -z "$audio_root$midi_root" ]; then
    manifests=no
elif [ -z "$audio_root" ] || [ -z "$midi_root" ]; then
    fail "--audio-root and --midi-root go together"
fi
if [ $manifests = yes ]; then
    "$python" scripts/build_manifests.py --audio-root "$audio_root" --midi-root "$midi_root" ${building[@]+"${building[@]}"}
fi
launch=("$python")
[ "$gpus" = 1 ] || launch=("$python" -m torch.distributed.run --nproc_per_node "$gpus")
train() { "${launch[@]}" -m music_training.emotion_bridges "$1" --config "$2" ${overrides[@]+"${overrides[@]}"}; }
exporting=()
if [ $spectocloud = yes ]; then
    train train_spectocloud "$spectocloud_config"
    exporting+=(spectocloud)
fi
if [ $midi = yes ]; then
    train train_midi_generator "$midi_config"
    exporting+=(midi_generator)
fi
if [ $export = yes ] && [ ${#exporting[@]} -gt 0 ]; then
    "$python" -m music_training.emotion_bridges export_models --newest "${exporting[@]}"
fi
