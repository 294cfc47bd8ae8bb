"""The command that installs this package, for sentences that say what is missing."""

from __future__ import annotations

from pathlib import Path

import ocvtp_kernels


def install_command(extra: str = "", setting: str = "") -> str:
    """What to run, and where; nothing is published, so that is a checkout.

    Args:
        extra: of pyproject.toml, whose packages are wanted.
        setting: of the environment, such as "OCVTP_NATIVE=1".
    """
    what = f"'.[{extra}]'" if extra else "."
    root = Path(ocvtp_kernels.__path__[0]).parent
    in_place = (root / "setup.py").exists()
    command = " ".join(filter(None, [setting, "pip install", "-e" if in_place else "", what]))
    return f"`{command}` in {root if in_place else 'a checkout'}"
