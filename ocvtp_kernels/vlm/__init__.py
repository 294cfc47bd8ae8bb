"""Where tokens come from: vision encoders around the pruner."""
