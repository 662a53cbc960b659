"""Recomputes a fourteen-label run of densenet121 on chest radiographs from the image files, the label and box tables and the
names of CheXNet's parameters, and compares it with what the run's folder says, number by number. NumPy, Pillow and scikit-learn
alone; nothing of Lightbox is used, and the checkpoint is not read: its values follow from its names.

    python recompute_nih.py RUN LABELS.csv BOXES.csv IMAGES SIDE WINDOW STRIDE

Prints how many numbers were compared; ends with 1 and the first differences if any is off.
"""

import csv
import json
import pathlib
import sys

import numpy as np
import pyarrow.parquet
from PIL import Image
from recomputed import conv, ellipse, end, faults, pool, same, upsample
from safetensors.numpy import load_file
from sklearn.metrics import average_precision_score, roc_auc_score

RUN, LABELS, BOXES, IMAGES = map(pathlib.Path, sys.argv[1:5])
SIDE, WINDOW, STRIDE = map(int, sys.argv[5:8])
# The order of the paper's table, which is that of CheXNet's outputs.
FINDINGS = (
    "Atelectasis Cardiomegaly Effusion Infiltration Mass Nodule Pneumonia Pneumothorax Consolidation Edema Emphysema Fibrosis "
    "Pleural_Thickening Hernia"
).split()
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

# ------------------------------------------------------------------------------------------------------- the model


def unit(name, count):
    """splitmix64 seeded with the name's FNV-1a hash, in [0, 1)."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def parameter(name, *shape):
    u = unit(name, int(np.prod(shape)))
    s = 2 * u - 1
    if name.endswith("running_mean"):
        v = 0.1 * s
    elif name.endswith("running_var"):
        v = 1 + 0.5 * u
    elif len(shape) == 1:
        v = 1 + 0.1 * s if name.endswith("weight") else 0.1 * s
    else:
        v = s * np.sqrt(6.0 / np.prod(shape[1:]))
    return v.astype(np.float32).reshape(shape)


ROOT = "module.densenet121."
parameters = {}


def weight(name, *shape):
    if name not in parameters:
        parameters[name] = parameter(ROOT + name, *shape)
    return parameters[name]


def norm_relu(x, name):
    """Running statistics; CheXNet's checkpoint has torchvision's names of before 0.2: `norm.1` for `norm1`."""
    c = x.shape[1]
    scale = weight(f"{name}.weight", c) / np.sqrt(weight(f"{name}.running_var", c) + np.float32(1e-5))
    shift = weight(f"{name}.bias", c) - weight(f"{name}.running_mean", c) * scale
    return np.maximum(x * scale[:, None, None] + shift[:, None, None], 0)


def features(x):
    """Huang et al., table 1: growth 32, bottleneck 4 x 32; the tensor that is pooled."""
    x = norm_relu(conv(x, weight("features.conv0.weight", 64, 3, 7, 7), 2, 3), "features.norm0")
    x = pool(x, 3, 2, 1, np.max)
    for b, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            name = f"features.denseblock{b}.denselayer{layer}"
            y = conv(norm_relu(x, f"{name}.norm.1"), weight(f"{name}.conv.1.weight", 128, x.shape[1], 1, 1))
            y = conv(norm_relu(y, f"{name}.norm.2"), weight(f"{name}.conv.2.weight", 32, 128, 3, 3), 1, 1)
            x = np.concatenate([x, y], 1)
        if b < 4:
            name, c = f"features.transition{b}", x.shape[1]
            x = pool(conv(norm_relu(x, f"{name}.norm"), weight(f"{name}.conv.weight", c // 2, c, 1, 1)), 2, 2, 0, np.mean)
    return norm_relu(x, "features.norm5")


def logits_of(a):
    head, bias = weight("classifier.0.weight", 14, 1024), weight("classifier.0.bias", 14)
    return a.astype(np.float64).mean((2, 3)) @ head.T.astype(np.float64) + bias


# ------------------------------------------------------------------------------------------------------- images, maps


labels = {r["image"]: set(r["findings"].split("|")) for r in csv.DictReader(open(LABELS))}
names = sorted(labels)
sizes, files = {}, {}
for name in names:
    image = Image.open(IMAGES / name)
    assert image.mode == "L", name
    sizes[name] = image.size
    # Pillow's own resize of floats rounds once, as torchvision's does.
    files[name] = np.asarray(image.convert("F").resize((SIDE, SIDE), Image.BILINEAR))
masks = {}
for row in csv.DictReader(open(BOXES)):
    # The release itself spells one finding in two ways.
    finding = "Infiltration" if row["finding"] == "Infiltrate" else row["finding"]
    if finding in labels.get(row["image"], ()):
        box = [float(row[k]) for k in ("x", "y", "width", "height")]
        key = (row["image"], FINDINGS.index(finding))
        masks[key] = masks.get(key, False) | ellipse(SIDE, *sizes[row["image"]], box)

# A value that lies half-way between two levels may go either way: of a 320 px image that is a few of a thousand.
prepared = load_file(RUN / "prepared" / f"images-{SIDE}.safetensors")["images"].reshape(len(names), SIDE, SIDE)
levels = np.stack([np.clip(np.rint(files[n]), 0, 255) for n in names])
steps = np.abs(prepared.astype(np.float64) - levels)
same("prepared images", steps.max(), 0, 1)
if (steps > 0).mean() > 2e-3:
    faults.append(f"{(steps > 0).mean():.4f} of the prepared pixels are off by a level")
images = ((prepared[:, None].astype(np.float64) / 255 - MEAN[:, None, None]) / STD[:, None, None]).astype(np.float32)

starts = [k * STRIDE for k in range(-(-(SIDE - WINDOW) // STRIDE) + 1)]
logits, activations, drops = {}, {}, {}
for name, image in zip(names, images):
    batch = [image]
    for y in starts:
        for x in starts:
            covered = image.copy()
            covered[:, y : y + WINDOW, x : x + WINDOW] = 0
            batch.append(covered)
    a = features(np.stack(batch))
    z = logits_of(a)
    logits[name], activations[name], drops[name] = z[0], a[0].astype(np.float64), z[:1] - z[1:]

# ------------------------------------------------------------------------------------------------------- the run

rows, stored, maps = [], {}, {}
images_of = {r["index"]: r["image"] for r in pyarrow.parquet.read_table(RUN / "images.parquet").to_pylist()}
for record in sorted((RUN / "units").glob("*.json")):
    stem = str(record)[: -len(".json")]
    rows += pyarrow.parquet.read_table(f"{stem}.scores.parquet").to_pylist()
    if json.loads(record.read_text())["unit"]["unit"] == "explain":
        for r in pyarrow.parquet.read_table(f"{stem}.predictions.parquet").to_pylist():
            stored[(r["image"], r["class"])] = r
        for file in sorted((RUN / "units").glob(f"{record.stem}.maps.*.safetensors")):
            state = load_file(file)
            explainer = file.name[len(f"{record.stem}.maps.") : -len(".safetensors")]
            for row, (i, t) in enumerate(zip(state["images"], state["targets"])):
                maps[(explainer, images_of[int(i)], int(t))] = state["maps"][row, 0]

wanted_rows = sorted((n, k) for n in names for k, f in enumerate(FINDINGS) if f in labels[n])
same("predictions", len(stored), 14 * len(names), 0)
sigmoid = lambda z: 1 / (1 + np.exp(-z))
for name in names:
    for k, finding in enumerate(FINDINGS):
        r = stored[(name, finding)]
        same(f"{name} {finding}: logit", r["logit"], logits[name][k], 1e-4)
        same(f"{name} {finding}: score", r["score"], sigmoid(logits[name][k]), 1e-4)
        same(f"{name} {finding}: label", r["label"], finding in labels[name], 0)

explainers = ("gradcam", "layercam", "occlusion")
spread = {e: [] for e in explainers}
for explainer in explainers:
    made = sorted((n, t) for e, n, t in maps if e == explainer)
    if made != wanted_rows:
        faults.append(f"{explainer}: {len(made)} maps, {len(wanted_rows)} positive labels")
for name, k in wanted_rows:
    a = activations[name]
    gradient = parameters["classifier.0.weight"][k].astype(np.float64) / (a.shape[1] * a.shape[2])
    sums, counts = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    for drop, (y, x) in zip(drops[name][:, k], [(y, x) for y in starts for x in starts]):
        sums[y : y + WINDOW, x : x + WINDOW] += drop
        counts[y : y + WINDOW, x : x + WINDOW] += 1
    truth = {
        "gradcam": np.maximum((gradient[:, None, None] * a).sum(0), 0),
        "layercam": np.maximum((np.maximum(gradient, 0)[:, None, None] * a).sum(0), 0),
        "occlusion": sums / np.maximum(counts, 1),
    }
    for explainer in explainers:
        m, scale = maps[(explainer, name, k)], np.abs(truth[explainer]).max()
        if scale > 0:
            same(f"{explainer} {name} {FINDINGS[k]}", m / scale, truth[explainer] / scale, 2e-3)
        else:
            same(f"{explainer} {name} {FINDINGS[k]}: constant", m, truth[explainer], 1e-6)
        if m.max() > m.min():
            spread[explainer].append((name, m.tobytes()))
for explainer in explainers:
    if len(set(spread[explainer])) < len(spread[explainer]) or len(spread[explainer]) < 0.5 * len(wanted_rows):
        faults.append(f"{explainer}: the maps of an image's classes are the same map")

# What was stored, scored by scikit-learn, by image and class.
values, checked = {}, 0
for r in rows:
    if r["image"] is None or r["metric"] != "pixel-auprc":
        continue
    key = (r["image"], r["target"])
    if key not in masks:
        if r["value"] is not None:
            faults.append(f"{key}: no box is of this class, and the value is {r['value']}")
        continue
    mask = masks[key].ravel()
    if r["explainer"] == "chance":
        truth = mask.mean()
    else:
        truth = average_precision_score(mask, upsample(maps[(r["explainer"], *key)], SIDE).ravel())
        checked += 1
    same(f"{r['explainer']} {key}: pixel-auprc", r["value"], truth, 1e-9)
    values.setdefault(r["explainer"], {})[key] = truth
same("rows with a box of their class", checked, len(explainers) * len(masks), 0)

summary = json.loads((RUN / "summary.json").read_text())["summary"]
cells = {(c["explainer"], c["metric"]): c for c in summary["cells"]}
for explainer in (*explainers, "chance"):
    cell = cells[(explainer, "pixel-auprc")]
    # The mean over all explanations.
    same(f"cell {explainer}", cell["mean"], np.mean(list(values[explainer].values())), 1e-9)
for m in summary["class_means"]:
    column = summary["columns"][m["column"]]
    if m["metric"] == "pixel-auprc":
        k = FINDINGS.index(m["class"])
        of = [v for (_, t), v in values[column["explainer"]].items() if t == k]
        same(f"{column['explainer']} {m['class']}", m["mean"], np.mean(of), 1e-9)
score = np.stack([sigmoid(logits[n]) for n in names])
label = np.array([[f in labels[n] for f in FINDINGS] for n in names])
counts = {v["class"]: v["images"] for v in summary["class_values"]}
same("images of each class", [counts[f] for f in FINDINGS], label.sum(0), 0)
by_class = {v["class"]: v["value"] for v in summary["class_values"] if v["metric"] == "auroc"}
aurocs = []
for k, finding in enumerate(FINDINGS):
    if 0 < label[:, k].sum() < len(names):
        aurocs.append(roc_auc_score(label[:, k], score[:, k]))
        same(f"AUROC {finding}", by_class[finding], aurocs[-1], 1e-9)
    elif by_class.get(finding) is not None:
        faults.append(f"AUROC {finding}: one class is absent, and the value is {by_class[finding]}")
# A mean over the classes has no value where one of them has none.
if len(aurocs) == len(FINDINGS):
    same("cell auroc", cells[("", "auroc")]["mean"], np.mean(aurocs), 1e-9)
elif cells[("", "auroc")].get("mean") is not None:
    faults.append("AUROC over all classes has a value, and a class has none")

end(f"; {len(names)} images, {len(wanted_rows)} rows, {len(masks)} masks")
