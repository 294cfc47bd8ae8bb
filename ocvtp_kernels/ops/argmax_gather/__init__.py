"""`ocvtp::argmax_gather`."""
