"""Token selectors: the object-centric pruner and training-free baselines, behind one interface."""
