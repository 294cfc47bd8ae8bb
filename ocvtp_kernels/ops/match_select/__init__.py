"""`ocvtp::match_select`."""
