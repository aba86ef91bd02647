"""One experiment: its configuration, its run folder, and the steps from one to the other."""
