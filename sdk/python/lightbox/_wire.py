"""The wire: lines of JSON on a Unix socket, arrays in shared memory. docs/wire.md describes the lines; this is an implementation of
that page on the standard library and NumPy alone.

Either side calls the other, and a side that waits for an answer answers calls, so that calls nest. The arrays of a message lie in a
segment, an anonymous memory file of the sender, which the receiver maps read-only and gives back when the last array is gone.
"""

import array
import fcntl
import json
import mmap
import os
import socket
import sys
import traceback
import weakref

import numpy as np

PROTOCOL = 1

_LEAST = 1 << 16
_KEPT = 1 << 30
_ALIGNMENT = 64
_LONGEST = 64 << 20
_ADD_SEALS, _GET_SEALS = 1033, 1034
_SEAL, _SHRINK, _GROW = 1, 2, 4
_TYPES = ("float16", "float32", "float64", "uint8", "int16", "int32", "int64", "bool")


class Error(Exception):
    """An error that crosses: `kind` is `invalid-input`, `unsupported`, `invalid-output`, `torch`, `panic`, `cancelled` or `other`."""

    def __init__(self, message, kind="invalid-input", at=()):
        super().__init__(message)
        self.message, self.kind, self.at = message, kind, list(at)

    def __str__(self):
        return ": ".join([*self.at, self.message])


class Lost(Exception):
    """The other side has ended, or says what is no line."""


def to_numpy(value):
    """An array, its rows one after the other: of a NumPy array, a torch tensor (detached, from any device), or a list."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach()
        if value.dtype == torch.bfloat16:
            value = value.float()
        value = value.cpu().contiguous().numpy()
    value = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
    if value.dtype.name not in _TYPES:
        raise Error(f"an array of {value.dtype} does not cross; of {', '.join(_TYPES)} it does")
    return value


class _Pool:
    """A sender's segments."""

    def __init__(self):
        self.maps, self.lent, self.next = {}, set(), 0

    def lend(self, arrays):
        """Copies arrays into a segment: its number, the pieces, its file where it is new, and segments that were given up."""
        if not arrays:
            return None, [], None, []
        arrays = [to_numpy(a) for a in arrays]
        pieces, end = [], 0
        for a in arrays:
            pieces.append({"dtype": a.dtype.name, "shape": list(a.shape), "offset": end})
            end = -(-(end + a.nbytes) // _ALIGNMENT) * _ALIGNMENT
        number, file = self._segment(end)
        self.lent.add(number)
        whole = self.maps[number][1]
        for a, piece in zip(arrays, pieces):
            if a.nbytes:
                at = piece["offset"]
                whole[at : at + a.nbytes].view(a.dtype).reshape(a.shape)[...] = a
        return number, pieces, file, self._give_up()

    def _segment(self, size):
        wanted = max(_LEAST, 1 << max(size - 1, 0).bit_length())
        free = [(len(m), n) for n, (m, _) in self.maps.items() if n not in self.lent and wanted <= len(m) <= 4 * wanted]
        if free:
            return min(free)[1], None
        file = os.memfd_create("lightbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file, wanted)
        fcntl.fcntl(file, _ADD_SEALS, _SHRINK | _GROW | _SEAL)
        mapped = mmap.mmap(file, wanted)
        number, self.next = self.next, self.next + 1
        self.maps[number] = (mapped, np.frombuffer(mapped, np.uint8))
        return number, file

    def _give_up(self):
        gone = []
        while True:
            free = sorted((len(m), n) for n, (m, _) in self.maps.items() if n not in self.lent)
            if sum(size for size, _ in free) <= _KEPT:
                return gone
            number = free[0][1]
            del self.maps[number]
            gone.append(number)


class Channel:
    """A connection; it belongs to one thread. `answer(name, object, header, arrays)` gives (header, arrays) to a call of the other
    side."""

    def __init__(self, connection, answer=None):
        self.socket, self.answer = connection, answer
        self.rest, self.files = bytearray(), []
        self.pool, self.mapped, self.freed = _Pool(), {}, []
        self.dropped, self.calls, self.answering = [], 0, 0

    def call(self, name, header=None, arrays=(), object=0):
        """Calls the other side: the header and the arrays (read-only) of its answer. Raises its `Error`."""
        self.calls += 1
        number = self.calls
        self._send({"id": number, "call": name, "object": object, "header": header or {}}, arrays)
        while True:
            frame, found = self._receive()
            if "call" not in frame and frame.get("id") != number:
                raise Lost(f"it answers call {frame.get('id')}, and this is call {number}")
            if "error" in frame:
                e = frame["error"]
                raise Error(e.get("message", "an error"), e.get("kind", "other"), e.get("at", []))
            if "reply" in frame:
                return frame["reply"], found()
            self._answer(frame, found)
            found = frame = None

    def serve(self):
        """Answers calls until the other side closes the connection, or is lost; the connection is closed then."""
        try:
            while True:
                frame, found = self._receive()
                self._answer(frame, found)
                # Or a batch would stay alive until the next one has come.
                frame = found = None
        except Lost:
            pass
        finally:
            self.socket.close()

    def _answer(self, frame, found):
        reply, arrays, error = {}, (), None
        self.answering = frame.get("id", 0)
        try:
            if "call" not in frame:
                raise Lost("a line that is neither call nor answer")
            reply, arrays = self.answer(frame["call"], frame.get("object", 0), frame.get("header", {}), found(), frame)
        except Lost:
            raise
        except Error as e:
            error = {"kind": e.kind, "message": e.message, "at": e.at}
        except KeyboardInterrupt:
            error = {"kind": "cancelled", "message": "cancelled", "at": []}
        except BaseException as e:
            error = {"kind": "other", "message": _said(e), "at": []}
            traceback.print_exc()
        if error is None:
            try:
                self._send({"id": frame.get("id", 0), "reply": reply}, arrays)
                return
            except Error as e:
                error = {"kind": "invalid-output", "message": e.message, "at": []}
        self._send({"id": frame.get("id", 0), "error": error}, ())

    def _send(self, frame, arrays):
        number, pieces, file, gone = self.pool.lend(list(arrays))
        if number is not None:
            frame.update(segment=number, arrays=pieces)
        if file is not None:
            frame["new"] = True
        if gone:
            frame["gone"] = gone
        free, self.freed = self.freed, []
        if free:
            frame["free"] = free
        dropped, self.dropped = self.dropped, []
        if dropped:
            frame["drop"] = dropped
        line = memoryview(json.dumps(frame, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        try:
            if file is not None:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))]
                line = line[self.socket.sendmsg([line], rights) :]
            self.socket.sendall(line)
        except OSError as e:
            raise Lost(str(e)) from e
        finally:
            if file is not None:
                os.close(file)

    def receive_file(self):
        """The file that came with the last line."""
        if not self.files:
            raise Lost("a line without its file")
        return self.files.pop(0)

    def _receive(self):
        """The next line, and a function that gives its arrays."""
        searched = 0
        while True:
            end = self.rest.find(b"\n", searched)
            if end >= 0:
                break
            searched = len(self.rest)
            if searched > _LONGEST:
                raise Lost("a line that is too long")
            try:
                got, control, _, _ = self.socket.recvmsg(1 << 16, socket.CMSG_SPACE(16 * 4), socket.MSG_CMSG_CLOEXEC)
            except OSError as e:
                raise Lost(str(e)) from e
            for level, kind, data in control:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    files = array.array("i")
                    files.frombytes(data[: len(data) - len(data) % files.itemsize])
                    self.files.extend(files)
            if not got:
                raise Lost("the connection is closed")
            self.rest += got
        try:
            frame = json.loads(bytes(self.rest[:end]))
        except ValueError as e:
            raise Lost(f"{bytes(self.rest[:100])!r}: {e}") from e
        del self.rest[: end + 1]
        self.pool.lent.difference_update(frame.get("free", ()))
        for number in frame.get("gone", ()):
            self.mapped.pop(number, None)
        if frame.get("new"):
            self._map(frame.get("segment"), self.receive_file())
        segment, pieces = frame.get("segment"), frame.get("arrays", [])
        return frame, lambda: self._arrays(segment, pieces)

    def _map(self, number, file):
        try:
            if not fcntl.fcntl(file, _GET_SEALS) & _SHRINK:
                raise Lost("memory that is not sealed against shrinking")
            self.mapped[number] = mmap.mmap(file, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(file)

    def _arrays(self, number, pieces):
        if number is None:
            return []
        base = np.frombuffer(self.mapped[number], np.uint8)
        # Views hold on to `base`, so that it ends with the last of them. The list is looked up then: `_send` replaces it.
        weakref.finalize(base, lambda channel, n: channel.freed.append(n), self, number).atexit = False
        found = []
        for piece in pieces:
            bits = piece["dtype"] == "bfloat16"
            dtype = np.dtype("uint16" if bits else piece["dtype"])
            size = int(np.prod(piece["shape"], dtype=np.int64)) * dtype.itemsize
            at = piece["offset"]
            if at < 0 or size < 0 or at + size > len(base):
                raise Error(f"an array beyond its segment: {piece}")
            value = base[at : at + size].view(dtype).reshape(piece["shape"])
            found.append((value.astype(np.uint32) << 16).view(np.float32) if bits else value)
        return found


def _said(e):
    """An exception in a line, with the place in the author's file where it was raised."""
    text = f"{type(e).__name__}: {e}" if str(e) else type(e).__name__
    here = os.path.dirname(os.path.abspath(__file__))
    frames = [f for f in traceback.extract_tb(e.__traceback__) if not os.path.abspath(f.filename).startswith(here)]
    return f"{text} ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else text
