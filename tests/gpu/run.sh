#!/usr/bin/env bash
# On the CUDA machine, in the folder that pack.sh made: the same maps on CPU and GPU, the same numbers twice, mixed precision,
# the demo and the benchmark. DEVICE=cpu tries the script itself where there is no GPU.
set -euo pipefail
cd "$(dirname "$0")"
device=${DEVICE:-cuda:0}
LD_LIBRARY_PATH=$(python3 -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')
export LD_LIBRARY_PATH
if [ "$device" != cpu ]; then
  nvidia-smi --query-gpu=name,driver_version --format=csv
fi

maps() { # NAME MODEL WEIGHTS EXPLAINER...
  local name=$1 model=$2 weights=$3 on
  shift 3
  for on in cpu "$device"; do
    ./lightbox explain checkpoint.safetensors --model "$model" --model-param size=64 --weights "$weights" --device "$on" \
      "${@/#/--explainer=}" --raw "maps-$name-${on%:*}.safetensors"
  done
  python3 compare.py "maps-$name-cpu.safetensors" "maps-$name-${device%:*}.safetensors"
}
maps densenet densenet-small plain.pth gradcam gradcam:layer=features.norm5 example-occlusion noise
maps deit deit-mini deit-facebook.pth gradcam attention
maps deit-alone deit-mini deit-facebook.pth gradcam
maps patchconvnet patchconvnet-mini patchconvnet.pth gradcam attention

quick() { # FOLDER MORE...
  ./lightbox run study-quick --device "$device" --output "$1" --restart --set data.count=240 --set split.test=60 \
    --set split.folds=2 --set 'models.*.train.epochs=2' "${@:2}"
}
quick once
quick again
cmp once/summary.csv again/summary.csv
echo "the same numbers twice"
if [ "$device" != cpu ]; then
  quick mixed --set 'models.*.train.precision=mixed'
fi
./lightbox run demo --device "$device" --output demo --restart
LIGHTBOX_BENCH_DEVICE=$device ./bin/gradcam
