"""The one place that says which version this is; read at build time without importing torch."""

__version__ = "0.1.0"
