"""Builds the demo model and its sample data from scratch."""
