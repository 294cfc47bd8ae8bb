"""What a vision-language model costs before and after pruning, counted from its dimensions."""
