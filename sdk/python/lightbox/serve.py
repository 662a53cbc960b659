"""The process that runs Python plugins for the program: `python -m lightbox.serve --descriptor 3`. It is started once for an
interpreter, and ends with the program that started it."""

import argparse
import ctypes
import importlib.util
import os
import platform
import re
import signal
import socket
import sys
import threading

from . import _wire, plugin
from ._wire import PROTOCOL, Channel, Error


class Objects:
    """What the other side knows by a number, on every connection."""

    def __init__(self):
        self.all, self.next, self.lock = {}, 1, threading.Lock()

    def add(self, value):
        with self.lock:
            number, self.next = self.next, self.next + 1
            self.all[number] = value
        return number

    def get(self, number, kind):
        found = self.all.get(number)
        if not isinstance(found, kind):
            raise Error(f"{number} is no {kind.__name__.lower()}")
        return found

    def drop(self, numbers):
        with self.lock:
            for number in numbers:
                self.all.pop(number, None)


class Server:
    """Answers the calls of docs/wire.md. `plugins` are there without a file: those of a notebook."""

    def __init__(self, plugins=None):
        self.objects, self.plugins = Objects(), plugins or {}

    def connect(self, connection):
        """Serves a connection on a thread of its own."""
        channel = Channel(connection)
        channel.answer = lambda *call: self.answer(channel, *call)
        threading.Thread(target=channel.serve, daemon=True).start()

    def answer(self, channel, name, object, header, arrays, frame):
        self.objects.drop(frame.get("drop", ()))
        if name == "hello":
            return _hello(), ()
        if name == "environment":
            return environment(header.get("dependencies") or [], header.get("python")), ()
        if name == "open":
            found = self.plugins.get(header["file"]) or load(header["file"])
            return {"object": self.objects.add(found), "manifest": found.manifest()}, ()
        if name in ("make-model", "model-spec"):
            model = self.objects.get(object, plugin.Plugin).make_model(header["name"], header["options"])
            return (model.spec(), ()) if name == "model-spec" else self._made(model)
        if name == "bind":
            bound = self.objects.get(object, plugin.Plugin).bind(header["explainer"], header["message"])
            return {"object": self.objects.add(bound), "plan": bound.plan}, ()
        if name in ("explain", "fit"):
            bound = self.objects.get(object, plugin.Bound)
            calls = plugin.Host(channel, self._module(header.get("module")))
            return getattr(bound, name)(header["message"], arrays, calls)
        if name in ("run", "parameters", "load"):
            return getattr(self.objects.get(object, plugin.Model), f"answer_{name}")(header, arrays)
        if name == "fork":
            return self._made(self.objects.get(object, plugin.Model).answer_fork(header, arrays))
        raise Error(f"there is no call {name}", "unsupported")

    def _made(self, model):
        number = self.objects.add(model)
        return {"object": number, "spec": model.spec(), "module": f"{os.getpid()}:{number}"}, ()

    def _module(self, key):
        """The model of this process that a key names; None for one of another."""
        process, _, number = (key or "").partition(":")
        return self.objects.all.get(int(number)) if process == str(os.getpid()) else None


def _hello():
    return {
        "protocol": PROTOCOL,
        "pid": os.getpid(),
        "language": f"Python {platform.python_version()}",
        "interpreter": sys.executable,
    }


def environment(dependencies, python):
    """The interpreter's packages, and which of the dependencies (PEP 508) are not there."""
    from importlib import metadata

    found = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            # The first on the path is the one that is imported.
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    missing = [d for d in dependencies if not _is_there(d, found)]
    if python and not _satisfies(platform.python_version(), python):
        missing.insert(0, f"Python {python}")
    packages = sorted(f"{name}=={version}" for name, version in found.items())
    return {"language": f"Python {platform.python_version()}", "packages": packages, "missing": missing}


def _is_there(dependency, found):
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*([^;]*)", dependency)
    if not match:
        return False
    version = found.get(re.sub(r"[-_.]+", "-", match[1]).lower())
    return version is not None and _satisfies(version, match[2].strip().strip("()"))


def _satisfies(version, wanted):
    """Whether a version is among those of a specifier as `>=2.0,<3`, by the library `packaging` where there is one."""
    if not wanted or wanted.startswith("@"):
        return True
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        numbers = lambda text: [int(n) for n in re.findall(r"\d+", text.split("+")[0])][:3]
        have = numbers(version)
        for part in wanted.split(","):
            operator, value = re.match(r"\s*(~=|==|!=|<=|>=|<|>)?\s*(.*)", part).groups()
            want = numbers(value)
            size = max(len(have), len(want))
            a, b = have + [0] * (size - len(have)), want + [0] * (size - len(want))
            start = a[: len(want)] == want if "*" in value else a == b
            is_so = {"==": start, "!=": not start, "<=": a <= b, ">=": a >= b, "<": a < b, ">": a > b}
            if not is_so.get(operator or "==", a >= b and a[: len(want) - 1] == want[:-1]):
                return False
        return True
    return SpecifierSet(wanted).contains(version, prereleases=True)


def load(file):
    """Imports a plugin's file."""
    name = os.path.splitext(os.path.basename(file))[0]
    spec = importlib.util.spec_from_file_location(f"lightbox_plugin_{name}", file)
    module = importlib.util.module_from_spec(spec)
    # What it imports beside itself, as a script finds it.
    folder = os.path.dirname(os.path.abspath(file))
    if folder not in sys.path:
        sys.path.append(folder)
    found = plugin.Plugin(name, file)
    with plugin.collecting(found):
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    found.version = str(getattr(module, "__version__", found.version))
    if not found.explainers and not found.models:
        raise Error(f"{file}: it has no function or class with @lightbox.explainer or @lightbox.model", "unsupported")
    return found


def _prepare():
    """What every process of plugins does first."""
    # Whoever takes all memory is the first to go.
    try:
        with open("/proc/self/oom_score_adj", "w") as f:
            f.write("500")
    except OSError:
        pass
    # A child ends with this process, as this one ends with the program; also one that was not yet running when this process ended.
    libc, own = ctypes.CDLL(None, use_errno=True), [os.getpid()]

    def in_child():
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != own[0]:
            os._exit(1)
        own[0] = os.getpid()

    os.register_at_fork(after_in_child=in_child)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def main():
    parser = argparse.ArgumentParser(prog="python -m lightbox.serve", description=__doc__)
    parser.add_argument("--descriptor", type=int, required=True, help="the descriptor of a Unix socket, from the program")
    descriptor = parser.parse_args().descriptor
    _prepare()
    server = Server()
    control = socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)

    def connect(name, object, header, arrays, frame):
        if name != "connect":
            raise Error(f"there is no call {name} here", "unsupported")
        server.connect(socket.socket(fileno=channel.receive_file()))
        return {}, ()

    channel = Channel(control, connect)
    try:
        channel.serve()
    finally:
        # Whatever else runs here has nobody left to work for.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
