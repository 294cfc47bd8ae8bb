"""From the benchmark's result files to a page, the README's tables and the projections."""
