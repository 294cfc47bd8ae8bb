"""The greedy selections that go pick by pick."""

from ocvtp_kernels.greedy.triton_dpp import dpp_select
from ocvtp_kernels.greedy.triton_facility import facility_select
from ocvtp_kernels.greedy.triton_farthest import farthest_select
from ocvtp_kernels.greedy.triton_pivot import pivot_select

__all__ = ["dpp_select", "facility_select", "farthest_select", "pivot_select"]
