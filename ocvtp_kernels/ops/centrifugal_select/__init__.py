"""`ocvtp::centrifugal_select`."""
