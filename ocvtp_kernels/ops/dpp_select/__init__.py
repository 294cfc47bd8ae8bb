"""`ocvtp::dpp_select`."""
