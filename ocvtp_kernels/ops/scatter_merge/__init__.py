"""`ocvtp::scatter_merge`."""
