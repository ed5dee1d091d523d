"""Finds the cost of a training, and settings that suit it, by running parts of it."""
