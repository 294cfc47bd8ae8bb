"""`ocvtp::merge`."""
