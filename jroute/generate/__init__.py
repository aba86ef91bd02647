"""Fixed decoding, the cache, the engine that completes prompts, and scoring."""
