"""What `cargo xtask wheel --test` does in the fresh environment: the module's calls that need no torch, on a network in NumPy."""

import importlib.util
import pathlib
import sys

import numpy as np

import lightbox as lb

folder = pathlib.Path(sys.argv[1])
spec = importlib.util.spec_from_file_location("plain", pathlib.Path(__file__).with_name("plain.py"))
plain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain)

draw = np.random.default_rng(0)
images = draw.random((10, 3, 32, 32), np.float32)
masks = np.zeros((10, 32, 32), bool)
masks[:, 8:20, 8:20] = True
model = plain.Plain(32, 0)

run = lb.run(model, images=images, masks=masks, labels=np.arange(10) % 2, explainers=["gradcam", plain.gradcam, "centre"],
             metrics=["pixel-auprc", "hit"], folder=folder / "run", quiet=True)  # fmt: skip
print(run.text)
ours, theirs = run.maps("gradcam"), run.maps(plain.gradcam)
assert len(ours) == 10 and all(np.abs(ours[n] - theirs[n]).max() < 1e-6 for n in ours)
assert (folder / "run/report.html").is_file()

maps = np.stack([ours[name] for name in sorted(ours)])
scores = lb.score(maps, masks, ["pixel-auprc", "gini"])
assert scores["pixel-auprc"].shape == (10,) and np.isfinite(scores["gini"]).all()
one = lb.explain(model, images[0], plain.gradcam, target=1)
assert one.shape == (32, 32)
assert lb.explain({"name": "densenet-small", "weights": "random"}, images[:2], "gradcam").shape[0] == 2
print("the module works")
