"""From the benchmark's result files to an HTML page and the README's tables."""
