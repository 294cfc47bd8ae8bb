"""Vision-token pruning as torch ops, with the object-centric pruner in front.

Importing this package registers ``torch.ops.ocvtp.*``.
"""

from ocvtp_kernels import ops
from ocvtp_kernels.backends import BackendUnavailable, use_backend
from ocvtp_kernels.ops.prune.native.pipeline import prepare
from ocvtp_kernels.pruner.config import PrunerConfig
from ocvtp_kernels.pruner.pruner import OCPruner, Pruned
from ocvtp_kernels.selectors.coverage import coverage
from ocvtp_kernels.selectors.interface import Selected, Selector, SelectorInputs
from ocvtp_kernels.selectors.registry import make_selector, select
from ocvtp_kernels.version import __version__
from ocvtp_kernels.vlm.attach import attach
from ocvtp_kernels.vlm.handle import Handle

__all__ = [
    "BackendUnavailable",
    "Handle",
    "OCPruner",
    "Pruned",
    "PrunerConfig",
    "Selected",
    "Selector",
    "SelectorInputs",
    "__version__",
    "attach",
    "coverage",
    "make_selector",
    "ops",
    "prepare",
    "select",
    "use_backend",
]
