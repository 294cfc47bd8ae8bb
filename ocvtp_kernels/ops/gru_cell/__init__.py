"""`ocvtp::gru_cell`."""
