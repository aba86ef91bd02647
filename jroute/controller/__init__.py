"""From a prompt to a decision: its features, and the networks that read them."""
