"""`ocvtp::farthest_select`."""
