"""The bench: correctness gate first, then interleaved timings beside measured ceilings."""
