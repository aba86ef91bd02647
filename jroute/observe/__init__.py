"""What a run shows of itself: training curves, traces of episodes, progress on the terminal."""
