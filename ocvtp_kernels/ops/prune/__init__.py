"""`ocvtp::prune`."""
