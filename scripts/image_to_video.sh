#!/usr/bin/env bash
# Prompts to videos in two runs, as in the published fork: pictures first, then videos that start with them.
#   scripts/image_to_video.sh CONFIG PROMPT_FILE SAVE_DIR [flags for both runs]
# RUN starts each run ("python", or "torchrun --standalone --nproc_per_node 4"); IMAGE and VIDEO are its flags.
set -euo pipefail
if (($# < 3)); then
    echo "error: $# arguments; allowed: CONFIG PROMPT_FILE SAVE_DIR [flags]" >&2
    exit 2
fi
config=$1 prompts=$2 save_dir=$3
shift 3
inference="$(dirname "$0")/inference.py"
RUN=${RUN:-python}
IMAGE=${IMAGE:---num-frames 1 --resolution 1080p --aspect-ratio 9:16 --num-sampling-steps 100}
VIDEO=${VIDEO:---num-frames 2s --resolution 720p --aspect-ratio 9:16 --num-sampling-steps 100 --aes 7 --flow 5}

status=0
# shellcheck disable=SC2086  # the flags are words
$RUN "$inference" "$config" --prompt-path "$prompts" --seed 1024 $IMAGE "$@" --save-dir "$save_dir/images" \
    || status=$?
((status <= 1)) || exit "$status" # 1: some pictures failed; the others have videos
# shellcheck disable=SC2086
$RUN "$inference" "$config" --prompt-path "$prompts" --seed 1024 $VIDEO "$@" --save-dir "$save_dir/videos" \
    --reference-path "$save_dir/images" --mask-strategy 0
