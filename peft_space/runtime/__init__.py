"""Runs operations and trainings in other processes: the page itself never loads a model."""
