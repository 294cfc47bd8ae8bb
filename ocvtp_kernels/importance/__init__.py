"""How much attention each token receives in the vision encoder."""
