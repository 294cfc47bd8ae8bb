"""`ocvtp::resolve_picks`."""
