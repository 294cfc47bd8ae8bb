"""From the benchmark's result files to an HTML page, the README's tables and the projections."""
