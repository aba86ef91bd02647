"""Convert Hugging Face checkpoints in and out: one name and shape table per model family."""
