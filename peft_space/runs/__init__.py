"""A run is a directory: recipe, data, plan, events, checkpoints and adapter."""
