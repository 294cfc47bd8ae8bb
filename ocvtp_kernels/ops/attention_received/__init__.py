"""`ocvtp::attention_received`."""
