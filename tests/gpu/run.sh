#!/usr/bin/env bash
# On the CUDA machine: the same numbers on CPU and GPU, a run of the demo on the GPU, and the benchmark.
set -euo pipefail
cd "$(dirname "$0")"
export LD_LIBRARY_PATH=$(python3 -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')
nvidia-smi --query-gpu=name,driver_version --format=csv
for device in cpu cuda:0; do
  ./lightbox explain checkpoint.safetensors --model densenet-small --model-param size=64 --weights plain.pth --device $device \
    --explainer gradcam --explainer gradcam:layer=features.norm5 --explainer example-occlusion --explainer noise \
    --raw "maps-$device.safetensors"
done
python3 compare.py maps-cpu.safetensors maps-cuda:0.safetensors
./lightbox run demo --device cuda --output demo-cuda --restart
LIGHTBOX_BENCH_DEVICE=cuda:0 ./bin/gradcam
