"""`ocvtp::slot_argmax`."""
