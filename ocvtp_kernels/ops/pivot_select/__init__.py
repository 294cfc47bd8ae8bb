"""`ocvtp::pivot_select`."""
