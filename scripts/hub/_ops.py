"""The namespace that the ops of this build are registered in."""

import torch

ops = torch.ops.NAMESPACE


def add_op_namespace_prefix(op_name: str) -> str:
    """The name of an op with its namespace."""
    return f"NAMESPACE::{op_name}"
