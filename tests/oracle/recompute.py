"""Recomputes a run of densenet-small from its checkpoints, its prepared images and its table of boxes, and compares it with
what the run's folder says, number by number. NumPy and scikit-learn alone; nothing of Lightbox is used.

    python recompute.py RUN TABLE.csv

Prints how many numbers were compared; ends with 1 and the first differences if any is off.
"""

import csv
import json
import pathlib
import sys

import numpy as np
import pyarrow.parquet
from recomputed import conv, ellipse, end, faults, pool, same, upsample
from safetensors.numpy import load_file
from sklearn.metrics import average_precision_score, roc_auc_score

RUN, TABLE = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
MODEL, SIDE, EPS = "densenet-small", 64, 1e-5
BLOCKS, BLOCK = (3, 4, 4), None

# ------------------------------------------------------------------------------------------------------- the model


def features(state, x):
    """The tensor that is pooled: after the last norm and ReLU. Running statistics, as torchvision's densenet.py in eval."""

    def norm(x, name):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = weight / np.sqrt(var + EPS)
        return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]

    relu = lambda v: np.maximum(v, 0.0)
    x = relu(norm(conv(x, state["features.conv0.weight"], 2, 3), "features.norm0"))
    x = pool(x, 3, 2, 1, np.max)
    for b, layers in enumerate(BLOCKS, 1):
        for layer in range(1, layers + 1):
            name = f"features.denseblock{b}.denselayer{layer}"
            y = conv(relu(norm(x, f"{name}.norm1")), state[f"{name}.conv1.weight"])
            y = conv(relu(norm(y, f"{name}.norm2")), state[f"{name}.conv2.weight"], 1, 1)
            x = np.concatenate([x, y], 1)
        if b < len(BLOCKS):
            name = f"features.transition{b}"
            x = pool(conv(relu(norm(x, f"{name}.norm")), state[f"{name}.conv.weight"]), 2, 2, 0, np.mean)
    return relu(norm(x, "features.norm5"))


def logits_of(state, a):
    return a.mean((2, 3)) @ state["classifier.weight"].T + state["classifier.bias"]


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# ------------------------------------------------------------------------------------------------------- the run

boxes, labels = {}, {}
with open(TABLE) as file:
    for row in csv.DictReader(file):
        labels[row["image"]] = int(row["label"])
        mine = boxes.setdefault(row["image"], [])
        if row["x"]:
            mine.append([float(row[k]) for k in ("x", "y", "width", "height")])
names = sorted(labels)
number = {name: i for i, name in enumerate(names)}
prepared = load_file(RUN / "prepared" / f"images-{SIDE}.safetensors")
masks = np.zeros((len(names), SIDE, SIDE), np.uint8)
for name, mine in boxes.items():
    for box in mine:
        masks[number[name]] |= ellipse(SIDE, SIDE, SIDE, box)
same("masks", prepared["masks"][:, 0], masks, 0)
mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
images = (prepared["images"].astype(np.float64) / 255 - mean[:, None, None]) / std[:, None, None]
label = np.array([labels[n] for n in names])

split = lambda file: [number[r["img_name"]] for r in csv.DictReader(open(RUN / "splits" / file))]
test = split("test.csv")
found = [i for i in test if label[i] == 1 and masks[i].any()]

stored_scores, stored_predictions, stored_maps = {}, {}, {}
for record in sorted((RUN / "units").glob("*.json")):
    stem = str(record)[: -len(".json")]
    unit = json.loads(record.read_text())["unit"]
    rows = pyarrow.parquet.read_table(f"{stem}.scores.parquet").to_pylist()
    for r in rows:
        stored_scores[(r["fold"], r["image"], r["explainer"], r["metric"])] = r["value"]
        if r["target"] is not None:
            same("the explained class", r["target"], 1, 0)
    if unit["unit"] == "explain":
        for r in pyarrow.parquet.read_table(f"{stem}.predictions.parquet").to_pylist():
            stored_predictions[(r["fold"], r["image"], r["class"])] = r
        for file in sorted((RUN / "units").glob(f"{record.stem}.maps.*.safetensors")):
            state = load_file(file)
            explainer = file.name[len(f"{record.stem}.maps.") : -len(".safetensors")]
            for row, i in enumerate(state["images"]):
                stored_maps[(unit["fold"], explainer, int(i))] = state["maps"][row, 0]

summary = json.loads((RUN / "summary.json").read_text())["summary"]
cells = {(c["explainer"], c["metric"]): c for c in summary["cells"]}
folds = summary["folds"]
cell_values, scaling = {}, 0.0
for fold in range(folds):
    folder = RUN / "checkpoints" / f"{MODEL}-fold{fold}"
    state = {k: v.astype(np.float64) for k, v in load_file(folder / "best.safetensors").items()}
    history = json.loads((folder / "history.json").read_text())

    # The checkpoint that is kept is that of lowest validation loss, and its loss is what the history says.
    losses = [e["validation_loss"] for e in history]
    validation = split(f"val_fold{fold}.csv")
    p = softmax(logits_of(state, features(state, images[validation])))
    loss = -np.log(p[np.arange(len(validation)), label[validation]]).mean()
    same(f"fold {fold}: loss of the kept checkpoint", min(losses), loss, 1e-4)

    a = features(state, images[test])
    logits = logits_of(state, a)
    score = softmax(logits)
    for k, i in enumerate(test):
        for c, name in enumerate(("negative", "positive")):
            r = stored_predictions[(fold, names[i], name)]
            same(f"fold {fold} {names[i]}: logit", r["logit"], logits[k, c], 1e-4)
            same(f"fold {fold} {names[i]}: score", r["score"], score[k, c], 1e-5)
            same(f"fold {fold} {names[i]}: label", r["label"], label[i] == c, 0)
    value = cell_values.setdefault
    value(("", "auroc"), []).append(roc_auc_score(label[test], score[:, 1]))
    value(("", "auprc"), []).append(average_precision_score(label[test], score[:, 1]))

    # GradCAM at the pooled tensor: its gradient is the class's weights over the number of places.
    weights = state["classifier.weight"][1] / (a.shape[2] * a.shape[3])
    cam = np.maximum((a * weights[:, None, None]).sum(1), 0)
    train = split(f"train_fold{fold}.csv")
    prior = masks[train].mean(0)
    grey = (images * std[:, None, None] + mean[:, None, None]).mean(1)
    for i in found:
        k = test.index(i)
        scale = max(np.abs(cam[k]).max(), 1e-12)
        same(f"fold {fold} {names[i]}: gradcam", stored_maps[(fold, "gradcam", i)] / scale, cam[k] / scale, 1e-3)
        same(f"fold {fold} {names[i]}: mean-mask", stored_maps[(fold, "mean-mask", i)], prior, 1e-6)
        same(f"fold {fold} {names[i]}: brightness", stored_maps[(fold, "brightness", i)], grey[i], 1e-5)

    # What was stored, scored by scikit-learn.
    for explainer in ("gradcam", "mean-mask", "brightness", "noise"):
        each, pooled, marks = [], [], []
        for i in found:
            m = upsample(stored_maps[(fold, explainer, i)], SIDE)
            each.append(average_precision_score(masks[i].ravel(), m.ravel()))
            stored = stored_scores[(fold, names[i], explainer, "pixel-auprc")]
            same(f"fold {fold} {names[i]}: {explainer} pixel-auprc", stored, each[-1], 1e-9)
            low, high = m.min(), m.max()
            unit = (m - low) / (high - low) if high > low else np.zeros_like(m)
            pooled.append(np.round(unit * np.float32(65535)))
            marks.append(masks[i])
        value((explainer, "pixel-auprc"), []).append(np.mean(each))
        ap = average_precision_score(np.ravel(marks), np.ravel(pooled))
        same(f"fold {fold}: {explainer} pooled", stored_scores[(fold, None, explainer, "pixel-auprc-pooled")], ap, 1e-6)
        # Pooling without scaling each map first is another number.
        raw = [upsample(stored_maps[(fold, explainer, i)], SIDE) for i in found]
        unscaled = average_precision_score(np.ravel(marks), np.ravel(raw))
        scaling = max(scaling, abs(unscaled - ap))
        value((explainer, "pixel-auprc-pooled"), []).append(ap)
    value(("chance", "pixel-auprc"), []).append(np.mean([masks[i].mean() for i in found]))
    value(("chance", "pixel-auprc-pooled"), []).append(np.mean([masks[i].mean() for i in found]))

for key, values in cell_values.items():
    cell = cells[key]
    same(f"cell {key}: folds", [f["value"] for f in cell["folds"]], values, 1e-6)
    same(f"cell {key}: mean", cell["mean"], np.mean(values), 1e-6)
    same(f"cell {key}: deviation", cell["fold_std"], np.std(values, ddof=1), 1e-6)
    if key[1] == "pixel-auprc":
        same(f"cell {key}: images", cell["images"], len(found), 0)

if scaling < 1e-4:
    faults.append("this run cannot tell scaled maps from unscaled ones")
end()
