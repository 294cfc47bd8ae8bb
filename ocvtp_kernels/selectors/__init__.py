"""Token selectors: the object-centric pruner and its training-free peers, behind one interface."""
