#!/usr/bin/env bash
# The study at full scale without its data: the built-in spec `study-phantom`, and a report for docs/benchmarks.
#
#   bash tests/gpu/study.sh                                     five folds, 50 epochs, on a CUDA device
#   FOLDS=1 EPOCHS=5 PRECISION=mixed bash tests/gpu/study.sh    as much as time allows
#   DEVICE=cpu FOLDS=1 EPOCHS=1 bash tests/gpu/study.sh --set data.count=40 --set split.test=12 --set data.pixels=256
#
# More arguments go to `lightbox run`. A run that was stopped continues when the same command is given again; OUT names
# another folder. LIGHTBOX names the program where it is neither beside this script nor built here.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$here/../..
lightbox=${LIGHTBOX:-}
for candidate in "$here/lightbox" "$top/target/release/lightbox" "$top/target/debug/lightbox"; do
  if [ -z "$lightbox" ] && [ -x "$candidate" ]; then
    lightbox=$candidate
  fi
done
if ! [ -x "$lightbox" ]; then
  echo "error: ${lightbox:-lightbox} is not there (hint: cargo xtask build --release, or LIGHTBOX=PROGRAM)" >&2
  exit 1
fi
if [ "$lightbox" = "$here/lightbox" ]; then
  LD_LIBRARY_PATH=$(python3 -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')
  export LD_LIBRARY_PATH
fi
folds=${FOLDS:-5} epochs=${EPOCHS:-50} precision=${PRECISION:-float32} device=${DEVICE:-cuda} out=${OUT:-runs/study-phantom}
command=("$lightbox" run study-phantom --device "$device" --output "$out" --set "split.folds=$folds"
  --set "models.*.train.epochs=$epochs" --set "models.*.train.precision=$precision" "$@")
code=0
"${command[@]}" || code=$?
# A table with failed cells (5) or a model that diverged (8) is a result too.
case $code in 0 | 5 | 8) ;; *) exit "$code" ;; esac
python3 "$here/report.py" "$out" "${command[*]:1}" | tee "$out/report.md"
exit "$code"
