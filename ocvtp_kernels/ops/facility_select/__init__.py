"""`ocvtp::facility_select`."""
