"""From slot attention to exactly T token ids, and the tokens they name."""
