"""The pure-functional PPO learner."""
