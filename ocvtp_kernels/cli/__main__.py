"""``python -m ocvtp_kernels.cli``, the same as ``ocvtp``."""

from ocvtp_kernels.cli import main

main()
