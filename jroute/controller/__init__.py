"""From a prompt to a gate: features, networks, arms."""
