"""The frozen Qwen3 decoder and the streams in it."""
