"""The lm-evaluation-harness adapter: a model in which an arm chooses each prompt's gate."""
