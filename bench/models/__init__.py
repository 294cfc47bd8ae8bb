"""End to end: whole vision-language models with random weights, with and without a selector."""
