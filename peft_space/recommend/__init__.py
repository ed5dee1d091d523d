"""Recommends a recipe for a dataset, a base model and a machine."""
