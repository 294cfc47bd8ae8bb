"""`draw_rank` as a compiler takes it: it cannot trace a generator, and need not."""

import torch

from ocvtp_kernels.selectors.at_random import draw_rank

constant_rank = torch.compiler.assume_constant_result(draw_rank)
