"""Versions of packages, errors for missing ones, and the command that installs them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).parent


def installed_version(name: str) -> str | None:
    """The version of an installed package, None where it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def require_package(name: str, purpose: str, extra: str) -> None:
    """Raises ImportError, with the command that installs it, where a package is missing.

    Args:
        name: of the package; purpose: what it does, for the message.
        extra: of pyproject.toml that has it.
    """
    try:
        __import__(name)
    except ImportError as error:
        message = f"{name} {purpose} and is not installed: run {install_command(extra)}"
        raise ImportError(message) from error


def install_command(extra: str = "", setting: str = "") -> str:
    """What to run, and where; nothing is published, so that is a checkout.

    Args:
        extra: of pyproject.toml, whose packages are wanted.
        setting: of the environment, such as "OCVTP_NATIVE=1".
    """
    what = f"'.[{extra}]'" if extra else "."
    root = PACKAGE.parent
    in_place = (root / "setup.py").exists()
    command = " ".join(filter(None, [setting, "pip install", "-e" if in_place else "", what]))
    return f"`{command}` in {root if in_place else 'a checkout'}"
