"""Reference tokens to encoded tokens: LayerNorm, Linear, GELU, Linear."""
