"""Vision-token pruning as torch ops: Triton kernels on a GPU, PyTorch elsewhere."""

from ocvtp_kernels import ops
from ocvtp_kernels.backends import BackendUnavailable, use_backend
from ocvtp_kernels.ops import *  # noqa: F403
from ocvtp_kernels.ops.prune.native.pipeline import prepare
from ocvtp_kernels.version import __version__

__all__ = ["BackendUnavailable", "__version__", "ops", "prepare", "use_backend", *ops.__all__]
