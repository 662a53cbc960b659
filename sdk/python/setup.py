"""The wheel's tag: any Python 3, and this platform, since a program is inside. `cargo xtask wheel` says which glibc it needs."""

import os

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel


class Tagged(bdist_wheel):
    def get_tag(self):
        return "py3", "none", os.environ.get("LIGHTBOX_PLATFORM") or super().get_tag()[2]


class WithProgram(Distribution):
    def has_ext_modules(self):
        return True


setup(cmdclass={"bdist_wheel": Tagged}, distclass=WithProgram)
