"""setuptools' build backend, with the requirements of the native build.

An installer asks for these requirements before an isolated build, so that a plain `pip install .`
compiles the kernels. Where torch is installed already none is downloaded, nor where nothing would
be built: without a compiler, or by OCVTP_NATIVE=0.
"""

from __future__ import annotations

from typing import Any

from native_tools import requirements
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the other hooks are setuptools' own


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Requirements that pyproject.toml does not name."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *requirements()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """Requirements that pyproject.toml does not name."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *requirements()]
