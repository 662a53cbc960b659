"""Explainers that do what none should, for tests: each costs its own cell of the table and nothing else."""

import os
import signal
import sys
import time

import numpy as np

import lightbox as lb

NEEDS = lb.Needs()


def hostile(function):
    name = "py-" + function.__name__.replace("_", "-")
    return lb.explainer(function, name=name, title=name, family="other", needs=NEEDS)


def good(ctx):
    b, _, h, w = ctx.images.shape
    return np.broadcast_to(np.arange(h * w, dtype=np.float32).reshape(h, w), (b, h, w))


@hostile
def fine(ctx):
    return good(ctx)


@hostile
def leaves(ctx):
    os._exit(3)


@hostile
def crashes(ctx):
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)


@hostile
def hangs(ctx):
    while True:
        time.sleep(1)


@hostile
def raises(ctx):
    raise ValueError("not today")


@hostile
def floods(ctx):
    for _ in range(2000):
        print("x" * 1000)
    sys.stderr.write("y" * 1_000_000)
    return good(ctx)


@hostile
def wrong_shape(ctx):
    return np.zeros((len(ctx.images), 3))


@hostile
def too_few(ctx):
    return good(ctx)[:-1]


@hostile
def not_a_number(ctx):
    maps = np.array(good(ctx))
    maps[0, 0, 0] = np.nan
    return maps


@hostile
def no_array(ctx):
    return "a map"


@hostile
def forks(ctx):
    if os.fork() == 0:
        time.sleep(3600)
        os._exit(0)
    return good(ctx)


@hostile
def closes(ctx):
    os.closerange(3, 256)
    return good(ctx)


@hostile
def writes_to_its_input(ctx):
    ctx.images[0, 0, 0, 0] = 7
    return good(ctx)


@hostile
def lies(ctx):
    """Says that its maps are in memory that is not there."""
    channel = ctx._host.channel
    channel.socket.sendall(b'{"id":%d,"reply":' % channel.answering + b'{"maps":0},"segment":0,"arrays":[{"dtype":"float32","shape":[1073741824,64],"offset":0}]}\n')
    time.sleep(60)


@hostile
def babbles(ctx):
    ctx._host.channel.socket.sendall(b"this is no line of JSON\n")
    time.sleep(60)


@hostile
def takes_all(ctx):
    import resource

    # What 20 GB on a small machine would be: the system gives no more.
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    return np.ones((1 << 33,), np.uint8)


@hostile
def exits(ctx):
    sys.exit(5)
