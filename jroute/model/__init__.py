"""The frozen decoder and the streams in it."""
