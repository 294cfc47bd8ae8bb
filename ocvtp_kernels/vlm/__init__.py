"""Selectors on vision-language models, and vision encoders that supply tokens."""
