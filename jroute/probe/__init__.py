"""What gates do to a model, and mixing weights learned with the base frozen."""
