"""Does a pruned model still answer? A tiny LLaVA, scenes to ask it about, and its answers."""
