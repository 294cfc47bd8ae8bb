"""What a computation costs at least: FLOPs and bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Matrix FLOPs, two for a multiply-add, and the minimum bytes that cross memory."""

    flops: int
    bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)
