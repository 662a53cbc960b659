"""How long `lightbox.score` takes on 1,000 maps of 224 x 224, against the command on files that lie there, and scikit-learn, alternately.
From the project's root, after `cargo xtask build --release`, with NumPy and scikit-learn:

    PYTHONPATH=sdk/python LIGHTBOX_BIN=target/release/lightbox python tests/oracle/score_speed.py
"""

import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy as np
from sklearn.metrics import average_precision_score

import lightbox as lb
from lightbox import session

draw = np.random.default_rng(0)
maps = draw.random((1000, 224, 224), np.float32)
masks = np.zeros(maps.shape, np.uint8)
for i, (r, c) in enumerate(draw.integers(0, 160, (1000, 2))):
    masks[i, r : r + 40, c : c + 40] = 1
    maps[i, r : r + 40, c : c + 40] += 0.2


def timed(f):
    started = time.perf_counter()
    return f(), time.perf_counter() - started


with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
    files = [str(pathlib.Path(place, name)) for name in ("maps.npy", "masks.npy")]
    np.save(files[0], maps)
    np.save(files[1], masks)
    command = [session.program(), "score", "--json", "--maps", files[0], "--masks", files[1], "--metric", "pixel-auprc"]
    ours, rust, theirs = [], [], []
    for _ in range(5):
        found, seconds = timed(lambda: lb.score(maps, masks, "pixel-auprc")["pixel-auprc"])
        ours.append(seconds)
        rust.append(timed(lambda: subprocess.run(command, check=True, capture_output=True))[1])
        peer, seconds = timed(lambda: [average_precision_score(m.ravel(), v.ravel()) for m, v in zip(masks[:100], maps[:100])])
        theirs.append(seconds * 10)
assert np.abs(found[:100] - peer).max() < 1e-5
a, b, c = (statistics.median(t) for t in (ours, rust, theirs))
print(f"lightbox.score {a:.2f} s, the command {b:.2f} s ({a / b:.2f} times), scikit-learn {c:.2f} s ({c / a:.1f} times), medians of 5")
