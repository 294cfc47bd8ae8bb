"""`ocvtp::slot_attention`."""
