"""Arms: rules from a prompt to a gate that are compared on the same problems."""
