#!/usr/bin/env bash
# On the CUDA machine, in the folder that pack.sh made: the same maps of every explainer on CPU and GPU, the same numbers twice, mixed precision,
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

# Every explainer, with fewer passes where a method makes many.
many() { # MODEL
  ./lightbox list explainers --json | MODEL=$1 python3 -c 'import json, os, sys
quick = {"beyondintuition": "steps=3", "extremal": "iterations=3", "gradientshap": "samples=4", "integratedgradients": "steps=5",
    "iscam": "steps=2", "kernelshap": "samples=60,grid=4", "lime": "samples=40,grid=4", "meaningful": "iterations=3",
    "partitionshap": "evaluations=40", "rise": "masks=20", "smoothgrad": "samples=3", "smoothgradsq": "samples=3",
    "sscam": "samples=2", "tam": "steps=3", "tis": "masks=12", "vargrad": "samples=3", "vitcx": "most=6", "xrai": "steps=3"}
for e in json.load(sys.stdin)["explainers"]:
    if os.environ["MODEL"] in e["applies"] and e["name"] not in ("concept", "mean-mask", "probe"):
        print(e["name"] + (":" + quick[e["name"]] if e["name"] in quick else ""))'
}
mapfile -t all < <(many densenet-small)
maps densenet-all densenet-small plain.pth "${all[@]}"
mapfile -t all < <(many deit-mini)
maps deit-all deit-mini deit-facebook.pth "${all[@]}"
mapfile -t all < <(many patchconvnet-mini)
maps patchconvnet-all patchconvnet-mini patchconvnet.pth "${all[@]}"

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
  quick tf32 --set tf32=true
fi
quick bfloat16 --set 'models.*.params.precision=bfloat16'
./lightbox run demo --device "$device" --output demo --restart
# With LIGHTBOX_PEER_PYTHON naming a Python that has tests/oracle/bench-requirements.txt, beside its peers.
./bin/bench --device "$device" --output "bench-${device%:*}"
