"""The program from a notebook: `run`, `explain`, `score`, `read`. The program is a child process; networks and explainers of the notebook
stay here and are reached over a socket, as docs/wire.md has it."""

import atexit
import csv
import hashlib
import inspect
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
import zlib

import numpy as np

from . import plugin
from ._wire import Error, to_numpy

__all__ = ["Run", "RunError", "explain", "read", "run", "score"]


class RunError(Exception):
    """The program has ended with an error; the message is the program's."""


# ---------------------------------------------------------------------------------- the program


def program():
    """The program's path: `LIGHTBOX_BIN`, that of the wheel, that of the project, or on the path."""
    here = pathlib.Path(__file__).resolve().parent
    project = here.parents[2] / "target"
    built = [place for place in (project / "release/lightbox", project / "debug/lightbox") if place.is_file()]
    newest = sorted(built, key=lambda place: place.stat().st_mtime, reverse=True)
    for place in [os.environ.get("LIGHTBOX_BIN"), here / "bin/lightbox", *newest]:
        if place and os.access(place, os.X_OK):
            return str(place)
    found = shutil.which("lightbox")
    if not found:
        raise RunError("the program `lightbox` is not there: install the wheel, or name it by LIGHTBOX_BIN")
    return found


def environment():
    """What the program gets: plugins in Python run in this interpreter unless another is named; in a checkout the project's are
    beside the others, as they are in the wheel."""
    own = {**os.environ, "LIGHTBOX_PYTHON": os.environ.get("LIGHTBOX_PYTHON") or sys.executable}
    project = pathlib.Path(__file__).resolve().parents[3] / "plugins/python"
    if project.is_dir():
        path = own.get("LIGHTBOX_PLUGIN_PATH")
        own["LIGHTBOX_PLUGIN_PATH"] = f"{path}:{project}" if path else str(project)
    return own


def _command(arguments):
    done = subprocess.run([program(), *map(str, arguments)], env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RunError(_message(done.stderr) or f"the program has ended with {done.returncode}")
    return done


def _message(stderr):
    """The error of what was said on stderr, without the notes before it."""
    at = stderr.rfind("error: ")
    return stderr[at + 7 :].strip() if at >= 0 else stderr.strip()[-2000:]


# ---------------------------------------------------------------------------------- what is offered to it


class _Listener:
    """Networks and explainers of this process, at a socket in a folder that is this user's alone."""

    def __init__(self):
        from .serve import Server

        self.folder = tempfile.mkdtemp(prefix="lightbox-")
        self.path = os.path.join(self.folder, "socket")
        self.server, self.number, self.known = Server(), 0, weakref.WeakKeyDictionary()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(self.path)
        self.socket.listen(64)
        threading.Thread(target=self._accept, daemon=True, name="lightbox").start()
        atexit.register(shutil.rmtree, self.folder, True)

    def _accept(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.server.connect(connection)

    def offer(self, folder, things):
        """Writes a file for each thing into `folder`."""
        for number, (name, thing) in enumerate(things.items()):
            offered = plugin.Plugin(name)
            if isinstance(thing, plugin.Model):
                entry = plugin.ModelEntry(_giver(thing), name)
                offered.models[name] = entry
            else:
                offered.explainers[name] = thing
            self.number += 1
            key = f"{name}#{self.number}"
            self.server.plugins[key] = offered
            described = {"socket": self.path, "plugin": key, "digest": digest(thing)}
            pathlib.Path(folder, f"{number:03}.peer").write_text(json.dumps(described))


def _giver(model):
    """A model that is made once: the notebook's own."""

    def give(options):
        wanted = options.classes
        if wanted and hasattr(model, "spec") and model.spec()["outputs"][0].get("classes") not in (0, wanted):
            raise Error(f"the task has {wanted} classes, the network {model.spec()['outputs'][0]['classes']} outputs")
        return model

    return give


_listener = None


def _listening():
    global _listener
    if _listener is None:
        _listener = _Listener()
    return _listener


def _code(code):
    """What a function's code is, without where it stands."""
    said = lambda c: repr(sorted(map(repr, c))) if isinstance(c, frozenset) else repr(c)
    constants = [_code(c) if inspect.iscode(c) else said(c) for c in code.co_consts]
    return (code.co_code.hex(), code.co_names, code.co_varnames, constants)


def _content(value, add, seen):
    """Adds what a value is: a function with all that it reads of its surroundings, a class with its methods, a library by its version,
    arrays by their values, anything else by what it says of itself."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    module = getattr(value, "__module__", None) or ""
    if inspect.ismodule(value):
        add((value.__name__, getattr(value, "__version__", "")))
    elif inspect.isfunction(value):
        # A library's is known by its version, which the interpreter's packages have.
        add((value.__qualname__, _code(value.__code__)))
        add((repr(value.__defaults__), repr(value.__kwdefaults__)))
        if module.split(".")[0] in ("lightbox", "torch", "numpy"):
            return
        around = inspect.getclosurevars(value)
        for name, used in sorted({**around.globals, **around.nonlocals}.items()):
            add(name)
            _content(used, add, seen)
    elif inspect.isclass(value):
        add(value.__qualname__)
        for name, part in sorted(vars(value).items()):
            if inspect.isfunction(part):
                add(name)
                _content(part, add, seen)
    elif isinstance(value, plugin.Explainer):
        _content(value.made, add, seen)
    elif type(value).__module__.split(".")[0] in ("numpy", "torch") and hasattr(value, "shape"):
        value = to_numpy(value)
        add((value.dtype, value.shape, hashlib.sha256(np.ascontiguousarray(value)).hexdigest()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            _content(part, add, seen)
    elif isinstance(value, dict):
        for key, part in value.items():
            add(key)
            _content(part, add, seen)
    elif isinstance(value, (int, float, str, bytes, bool, type(None))):
        add(repr(value))
    else:
        add(type(value).__qualname__)


def digest(thing):
    """SHA-256 of what the results of a network or an explainer depend on: parameters and buffers, structure, code, packages."""
    hash = hashlib.sha256()
    add = lambda text: hash.update(str(text).encode() + b"\0")
    if isinstance(thing, plugin.Model):
        for name, value in sorted(thing.parameters().items()):
            _content(name, add, {})
            _content(to_numpy(value), add, {})
        spec = {k: v for k, v in thing.spec().items() if k not in ("name", "parameters")}
        add(json.dumps(spec, sort_keys=True, default=str))
        module, seen = getattr(thing, "module", None), {}
        if module is None:
            _content(type(thing), add, seen)
        else:
            add(module)
            for part in module.modules():
                _content(type(part).forward, add, seen)
    else:
        add(json.dumps(thing.spec(), sort_keys=True))
        _content(thing.made, add, {})
    add(sys.version)
    for name in ("torch", "numpy"):
        add((name, getattr(sys.modules.get(name), "__version__", "")))
    return hash.hexdigest()


# ---------------------------------------------------------------------------------- what is given


def _models(model):
    """Names in the spec, with what is to be offered."""
    given = model if isinstance(model, (list, tuple)) else [model]
    chosen, offered = [], {}
    for one in given:
        if isinstance(one, (str, os.PathLike)):
            name = os.fspath(one)
            chosen.append({"file" if name.endswith(".pt2") else "name": name})
        elif isinstance(one, dict):
            chosen.append(one)
        elif isinstance(one, plugin.Model):
            name = one.name
            while name in offered:
                name += "-2"
            offered[name] = one
            chosen.append({"name": name})
        else:
            what = type(one).__name__
            raise Error(f"a model is lightbox.model(net, mean=..., std=...), a name, or a file .pt2; this is {what}")
    return chosen, offered


def _explainers(given):
    chosen, offered = [], {}
    for one in given if isinstance(given, (list, tuple)) else [given]:
        if isinstance(one, plugin.Explainer):
            offered[one.name] = one
            chosen.append({"name": one.name})
        elif isinstance(one, dict):
            chosen.append(one)
        else:
            chosen.append(_choice(str(one)))
    return chosen, offered


def _choice(text):
    """`name:param=value,...` as a table of a spec."""
    name, _, rest = text.partition(":")
    if not rest:
        return {"name": name}
    pairs = [part.partition("=") for part in rest.split(",") if part]
    return {"name": name, "label": text, "params": {key: _value(value) for key, _, value in pairs}}


def _value(text):
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, (dict, list)) or value is None else value


def _toml(value):
    """A value in TOML, whose plain values JSON's are."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, np.generic):
        value = value.item()
    return json.dumps(os.fspath(value) if isinstance(value, os.PathLike) else value)


def _images(images):
    """[N, H, W, C] uint8 or uint16, of what a user gives."""
    images = to_numpy(images)
    if images.ndim != 4:
        raise Error(f"images [N, C, H, W] (or [N, H, W, C]) are expected, this has shape {list(images.shape)}")
    if images.shape[-1] not in (1, 3) or images.shape[1] in (1, 3):
        if images.shape[1] not in (1, 3):
            raise Error(f"images of 1 or 3 channels are expected, this has shape {list(images.shape)}")
        images = np.moveaxis(images, 1, -1)
    if images.dtype in (np.uint8, np.uint16):
        return images
    if images.dtype.kind != "f":
        raise Error(f"images of uint8, or of floating point in [0, 1], are expected, not {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        what = f"values from {low:.3g} to {high:.3g}"
        raise Error(f"images in [0, 1] are expected, these have {what}: give them before they are normalised, and mean and std to the model")
    levels = images * np.float64(65535)
    return np.rint(levels).astype(np.uint16)


def _png(path, pixels):
    """Writes [H, W, C] uint8 or uint16 as a PNG (ISO/IEC 15948)."""
    height, width, channels = pixels.shape
    depth = pixels.dtype.itemsize * 8
    rows = np.ascontiguousarray(pixels.astype(f">u{depth // 8}")).reshape(height, -1).view(np.uint8)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1).tobytes()
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, depth, {1: 0, 3: 2}[channels], 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 1)) + chunk(b"IEND", b"")
    pathlib.Path(path).write_bytes(whole)


def _masks(masks, count):
    masks = to_numpy(masks)
    masks = masks[:, 0] if masks.ndim == 4 and masks.shape[1] == 1 else masks
    if masks.ndim != 3 or len(masks) != count:
        raise Error(f"masks [N, H, W] of {count} images are expected, this has shape {list(masks.shape)}")
    return masks != 0


def _labels(labels, count, classes, names, masks):
    """The kind of the task, the names of its classes, and a text an image."""
    if labels is None:
        raise Error("labels are expected: a class an image [N], or 0 and 1 a class [N, classes]")
    labels = to_numpy(labels)
    if len(labels) != count:
        raise Error(f"{len(labels)} labels for {count} images")
    if labels.ndim == 2:
        names = names or [str(i) for i in range(labels.shape[1])]
        return "multi-label", names, ["|".join(n for n, there in zip(names, row) if there) for row in labels]
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise Error(f"labels are whole numbers [N], or 0 and 1 [N, classes]; these are {labels.dtype} {list(labels.shape)}")
    if labels.min() < 0 or (classes and labels.max() >= classes):
        raise Error(f"labels from {labels.min()} to {labels.max()}, and the model has {classes} classes")
    # With a finding or without, where the images without one have no mask; two classes of equal standing otherwise.
    if (classes or int(labels.max()) + 1) == 2 and (masks is None or not masks[labels == 0].any()):
        return "binary", names, [str(int(v)) for v in labels]
    names = names or [str(i) for i in range(classes or int(labels.max()) + 1)]
    return "multi-class", names, [names[int(v)] for v in labels]


def _write_data(folder, images, masks, names, patients, labels):
    """The images as a table, which the program knows; what is there already stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(images)
    names = [f"{i:06}" for i in range(count)] if names is None else [str(n) for n in names]
    if len(names) != count or len(set(names)) != count:
        raise Error(f"{count} names are expected, each once")
    files = [n.replace("/", "_").replace("\0", "_") + ".png" for n in names]
    rows = []
    for i, file in enumerate(files):
        _put(folder / file, images[i])
        row = {"image": file, "label": labels[i], "patient": str(patients[i]) if patients is not None else file}
        if masks is not None:
            mask = f"{file[:-4]}.mask.png"
            _put(folder / mask, (masks[i] * np.uint8(255)).astype(np.uint8)[:, :, None])
            # An empty mask says nothing of a place.
            row["mask"] = mask if masks[i].any() else ""
        rows.append(row)
    text = folder / "images.csv"
    partial = folder / "images.csv.partial"
    with open(partial, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if not text.is_file() or text.read_bytes() != partial.read_bytes():
        partial.replace(text)
    else:
        partial.unlink()
    return text


def _put(path, pixels):
    """A file whose content is the same keeps its time, by which the program knows that it need not read it again."""
    partial = path.with_suffix(".partial")
    _png(partial, pixels)
    if path.is_file() and path.read_bytes() == partial.read_bytes():
        partial.unlink()
    else:
        partial.replace(path)


# ---------------------------------------------------------------------------------- what a user calls


def run(
    model, images, masks=None, labels=None, explainers=("gradcam",), metrics=("pixel-auprc",), *, name="notebook", folder=None,
    names=None, patients=None, explain=None, classes=None, seed=0, batch_size=8, device="auto", settings=None, restart=False,
    quiet=False,
):  # fmt: skip
    """Explains images of a network by several methods, and scores every map.

    Args:
        model: `lightbox.model(net, mean=..., std=...)`, a name as `densenet121`, a file `net.pt2`, a table of a spec, or a list of
            such.
        images: [N, C, H, W] or [N, H, W, C], uint8 or floating point in [0, 1], before they are normalised.
        masks: [N, H, W], where the finding is; images of zeros have none.
        labels: a class an image [N], or 0 and 1 a class [N, classes]. Of two classes, where no image of class 0 has a mask, class 1
            is the finding and is explained; otherwise each image's own class.
        explainers: names (`"rise:masks=500"`), explainers made by `@lightbox.explainer`, or tables of a spec.
        metrics: names, with parameters as explainers have them.
        name, folder: where the results are, `runs/NAME` otherwise. The same call continues what is there.
        names, patients: of each image.
        explain: which class: `label`, `predicted`, `each-positive`, or a class.
        classes: names of the classes, in the outputs' order; those of the model otherwise.
        settings: further keys of the spec, as `{"chunk": 16}`.
        restart: throws away what is there.
        quiet: no bar.

    Returns:
        A `Run`.

    Raises:
        RunError: the program's error.
        KeyboardInterrupt: the same call goes on where it was.
    """
    images = _images(images)
    masks = None if masks is None else _masks(masks, len(images))
    chosen_models, offered = _models(model)
    chosen_explainers, more = _explainers(explainers)
    first = next(iter(offered.values()), None)
    count, known = (first.spec()["outputs"][0]["classes"], first.spec().get("class_names")) if first else (None, None)
    kind, classes, texts = _labels(labels, len(images), count, list(classes or known or []) or None, masks)
    folder = pathlib.Path(folder or f"runs/{name}").absolute()
    table = _write_data(folder.parent / f"{folder.name}-images", images, masks, names, patients, texts)
    task = {"kind": kind}
    if classes:
        task["classes"] = list(classes)
    if explain is not None:
        task["explain"] = str(explain)
    if masks is None:
        task["select"] = "all"
    spec = {
        "name": name, "output": str(folder), "seed": seed, "batch_size": batch_size, "device": device, **(settings or {}),
    }  # fmt: skip
    data = {"source": "table", "csv": str(table), "intensity": "depth", "colour": images.shape[-1] == 3}
    if masks is not None:
        data["mask"] = "mask"
    lines = [f"{key} = {_toml(value)}" for key, value in spec.items()]
    for head, content in (("data", data), ("task", task), ("split", {"test": "all"})):
        lines += [f"[{head}]", *(f"{key} = {_toml(value)}" for key, value in content.items())]
    chosen_metrics = [m if isinstance(m, dict) else _choice(str(m)) for m in ([metrics] if isinstance(metrics, str) else metrics)]
    for head, all in (("models", chosen_models), ("explainers", chosen_explainers), ("metrics", chosen_metrics)):
        for one in all:
            lines += [f"[[{head}]]", *(f"{key} = {_toml(value)}" for key, value in one.items())]
    with tempfile.TemporaryDirectory(prefix="lightbox-run-") as place:
        path = pathlib.Path(place, "spec.toml")
        path.write_text("\n".join(lines) + "\n")
        arguments = ["run", path, "--json"]
        if offered or more:
            _listening().offer(place, {**offered, **more})
            arguments += ["--plugins", place]
        if restart:
            arguments.append("--restart")
        _watch([program(), *map(str, arguments)], None if quiet else _Bar())
    return Run(folder)


def _watch(command, bar):
    """Runs the program to its end and shows what it says."""
    with tempfile.TemporaryFile("w+") as talk:
        child = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=talk, text=True, start_new_session=True)
        try:
            for line in child.stdout:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if bar:
                    bar.take(event)
            code = child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            child.wait()
            raise
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            if bar:
                bar.end()
        talk.seek(0)
        said = talk.read()
    # 5: some cells of the table have failed, which the table says.
    if code not in (0, 5):
        raise RunError(_message(said) or f"the program has ended with {code}")


class _Bar:
    """A bar: tqdm's where it is installed, else a line that is written over."""

    def __init__(self):
        self.all, self.done, self.now, self.bar = 0, 0, "", None
        try:
            from tqdm.auto import tqdm

            self.tqdm = tqdm
        except ImportError:
            self.tqdm = None

    def take(self, event):
        kind = event.get("event")
        if kind == "run-started":
            self.all, self.done = event["units"], event["done"]
        elif kind == "cell-started":
            self.now = f"{event['explainer']} on {event['model']}"
        elif kind == "unit-finished":
            self.done += 1
        elif kind not in ("note", "cell-failed"):
            return
        if self.tqdm:
            self.bar = self.bar or self.tqdm(total=self.all, unit="unit")
            self.bar.total, self.bar.n = self.all, min(self.done, self.all)
            self.bar.set_description(self.now, refresh=True)
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{self.done}/{self.all} {self.now}")
            sys.stderr.flush()

    def end(self):
        if self.bar:
            self.bar.close()
        elif not self.tqdm and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")


def explain(model, images, explainer="gradcam", *, target=None, batch_size=8):
    """Maps of images.

    Args:
        model: as in `run`, one: a table as `{"name": "densenet121", "weights": "file.pth"}` names a checkpoint.
        images: as in `run`; [C, H, W] for one image.
        explainer: as in `run`, one.
        target: a class; each image's highest otherwise.

    Returns:
        [N, h, w] float32, at the explainer's own resolution; [N, K, h, w] of several maps; without N for one image.
    """
    chosen, offered = _models(model)
    explainers, more = _explainers(explainer)
    if len(chosen) != 1 or len(explainers) != 1:
        raise Error("one model and one explainer are expected; `run` takes several")
    array = to_numpy(images)
    single = array.ndim == 3
    levels = _images(array[None] if single else array)
    name = chosen[0].get("file") or chosen[0]["name"]
    given = ",".join(f"{k}={v}" for k, v in explainers[0].get("params", {}).items())
    label = explainers[0]["name"] + (f":{given}" if given else "")
    with tempfile.TemporaryDirectory(prefix="lightbox-explain-", dir=_memory()) as place:
        # Files, which the program prepares as it does a run's.
        files = [os.path.join(place, f"{i:06}.png") for i in range(len(levels))]
        for file, pixels in zip(files, levels):
            _png(file, pixels)
        arguments = ["explain", *files, "--intensity", "depth", "--model", name, "--explainer", label, "--batch-size", batch_size]
        arguments += ["--raw", os.path.join(place, "raw.safetensors")]
        if levels.shape[-1] == 3:
            arguments.append("--colour")
        if offered or more:
            _listening().offer(place, {**offered, **more})
            arguments += ["--plugins", place]
        if target is not None:
            arguments += ["--target", target]
        for key, value in chosen[0].get("params", {}).items():
            arguments += ["--model-param", f"{key}={value}"]
        weights = chosen[0].get("weights")
        arguments += ["--random-weights"] if weights == "random" else ["--weights", weights] if weights else []
        _command(arguments)
        found = read_safetensors(os.path.join(place, "raw.safetensors"))
    maps = found[label]
    maps = maps[:, 0] if maps.ndim == 4 and maps.shape[1] == 1 else maps
    return maps[0] if single else maps


def score(maps, masks=None, metrics=("pixel-auprc",), *, validation=None, signed=False, seed=0):
    """Scores maps that were made anywhere.

    Args:
        maps: [N, h, w], larger where the image speaks more for the target.
        masks: [N, H, W]; maps are brought to their size. Metrics that look at the map alone need none.
        metrics: names, as in `run`, of metrics that ask neither the model nor the explainer.
        validation: `(maps, masks)` of other images, on which metrics as `iou` choose their threshold.

    Returns:
        A dictionary from metric to [N] float64, NaN where an image has no value (an empty mask); of a metric of the whole set, a
        number.
    """
    maps = to_numpy(maps)
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    with tempfile.TemporaryDirectory(prefix="lightbox-score-", dir=_memory()) as place:
        arguments = ["score", "--json", "--seed", seed, "--maps", os.path.join(place, "maps.npy")]
        np.save(arguments[-1], maps.astype(np.float32, copy=False))
        if masks is not None:
            arguments += ["--masks", os.path.join(place, "masks.npy")]
            np.save(arguments[-1], _masks(masks, len(maps)).astype(np.uint8))
        if validation is not None:
            for name, value in zip(("maps", "masks"), validation):
                arguments += [f"--validation-{name}", os.path.join(place, f"validation-{name}.npy")]
                value = to_numpy(value)
                np.save(arguments[-1], value.astype(np.float32 if name == "maps" else np.uint8, copy=False))
        for metric in metrics:
            arguments += ["--metric", metric]
        if signed:
            arguments.append("--signed")
        found = json.loads(_command(arguments).stdout)["metrics"]
    number = lambda v: np.nan if v is None else v
    return {m["metric"]: np.array([number(v) for v in m["values"]]) if m["values"] else number(m["mean"]) for m in found}


def _memory():
    """A folder in memory, if it has room for anything."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


_SAFE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "u1", "BOOL": "?"}


def read_safetensors(path):
    """The arrays of a `.safetensors` file, by name."""
    with open(path, "rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
        body = f.read()
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = np.frombuffer(body[begin:end], _SAFE[entry["dtype"]]).reshape(entry["shape"])
    return found


def read(folder):
    """A run that has ended, made by the program or by `run`."""
    folder = pathlib.Path(folder).absolute()
    if not (folder / "summary.json").is_file():
        raise RunError(f"{folder}: no run has ended there")
    return Run(folder)


def _frames():
    """pandas, or polars."""
    for name in ("pandas", "polars"):
        try:
            return __import__(name)
        except ImportError:
            pass
    raise RunError("pandas or polars is needed for tables: pip install pandas pyarrow")


class Run:
    """A run's results."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def __repr__(self):
        return f"Run({str(self.folder)!r})\n\n{self.text}"

    def _repr_html_(self):
        try:
            return self.table._repr_html_()
        except (AttributeError, RunError):
            return f"<pre>{self.text}</pre>"

    @property
    def text(self):
        """The table as text, with its notes."""
        return (self.folder / "summary.md").read_text()

    @property
    def summary(self):
        """All means with their intervals and comparisons: summary.json."""
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def table(self):
        """The table as a DataFrame: a row a model and explainer, a column a metric; `chance` is a row, too. Shares are in percent."""
        with open(self.folder / "summary.csv", newline="") as f:
            rows = [row for row in csv.DictReader(f) if row["model"] and row["column"]]
        table = {}
        for row in rows:
            own = table.setdefault((row["model"], row["column"]), {"model": row["model"], "explainer": row["column"]})
            own[row["group"]] = float(row["mean"]) if row["mean"] else None
        return _frames().DataFrame(list(table.values()))

    @property
    def scores(self):
        """Every value as a DataFrame: a row an image, target, explainer and metric."""
        return _frames().read_parquet(self.folder / "scores.parquet")

    def maps(self, explainer, model=None):
        """The maps of an explainer (a label, or one of the notebook), from image's name to [h, w] float32 ([maps, h, w] of several)."""
        explainer, model = getattr(explainer, "name", explainer), getattr(model, "name", model) or self._models()[0]
        with tempfile.TemporaryDirectory(prefix="lightbox-maps-") as place:
            path = os.path.join(place, "maps.safetensors")
            _command(["maps", self.folder, "--model", model, "--explainer", explainer, "--output", path])
            return read_safetensors(path)

    def _models(self):
        text = (self.folder / "spec.toml").read_text()
        blocks = [block.split("\n[[")[0] for block in text.split("[[models]]")[1:]]
        label = lambda block: re.search(r'^label = "(.+)"', block, re.M) or re.search(r'^name = "(.+)"', block, re.M)
        return [label(block)[1] for block in blocks]

    def compare(self, a, b, metric=None, model=None):
        """The tests of two explainers, one a model and metric of images: a list of dictionaries with `model`, `metric`, `a`, `b`, `p`
        (corrected over all pairs), `effect` (rank-biserial, above 0 where `a` is higher), `patients`, and `best` (whether either is
        the best of its table). `a` and `b` are labels, or explainers of the notebook."""
        a, b = (getattr(one, "name", one) for one in (a, b))
        file = json.loads((self.folder / "comparisons.json").read_text())
        labels = [c["explainer"] + (f".{c['output']}" if c["output"] else "") for c in file["columns"]]
        missing = [one for one in (a, b) if one not in labels]
        if missing:
            raise Error(f"the run has no explainer {missing[0]} (known: {', '.join(labels)})")
        found = []
        for group in file["comparisons"]["comparisons"]:
            own = [labels[c] for c in group["columns"]]
            if metric not in (None, group["metric"]) or model not in (None, group["model"]) or not {a, b} <= set(own):
                continue
            order = [(x, y) for i, x in enumerate(own) for y in own[i + 1 :]]
            pair = group["pairs"][order.index((a, b) if (a, b) in order else (b, a))]
            sign = 1 if (a, b) in order else -1
            best = None if group["best"] is None else own[group["best"]]
            found.append({"model": group["model"], "metric": group["metric"], "a": a, "b": b, "p": pair["p"],
                          "effect": sign * pair["effect"], "patients": group["patients"], "best": best if best in (a, b) else None})  # fmt: skip
        return found

    @property
    def report(self):
        """The report, shown in a notebook; `report.path` is its file."""
        return Report(self.folder / "report.html")


class Report:
    """A report's file."""

    def __init__(self, path):
        self.path = path

    def __repr__(self):
        return f"Report({str(self.path)!r})"

    def _repr_html_(self):
        import html

        return f'<iframe srcdoc="{html.escape(self.path.read_text(), quote=True)}" width="100%" height="800"></iframe>'
