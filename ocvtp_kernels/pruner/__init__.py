"""The object-centric pruner: its module, its weights folded for the ops, its files."""
