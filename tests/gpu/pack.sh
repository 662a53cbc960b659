#!/usr/bin/env bash
# Packs what a CUDA machine without Rust needs into .lightbox/gpu: stripped program, plugins, benchmarks, check files.
# The machine needs a torch 2.11 in its python3. Then, there: bash .lightbox/gpu/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo xtask build --release
bench() {
  cargo bench -p lightbox --bench bench --no-run --message-format=json 2>/dev/null |
    python3 -c 'import json,sys
for l in sys.stdin:
    m = json.loads(l)
    if m.get("executable") and m["target"]["name"] == "bench": print(m["executable"])' | tail -n 1
}
out=.lightbox/gpu
rm -rf "$out" && mkdir -p "$out/plugins" "$out/bin"
cp target/release/lightbox "$out/"
cp target/release/plugins/*.so "$out/plugins/"
cp "$(bench)" "$out/bin/bench"
strip "$out/lightbox" "$out"/plugins/*.so "$out"/bin/*
cp tests/gpu/{run.sh,compare.py,study.sh,report.py} tests/oracle/peer.py tests/oracle/golden/{checkpoint.safetensors,plain.pth,deit-facebook.pth,patchconvnet.pth} "$out/"
du -sh "$out"
