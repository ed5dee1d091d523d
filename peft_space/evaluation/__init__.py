"""Compares and scores the base model and the adapter."""
