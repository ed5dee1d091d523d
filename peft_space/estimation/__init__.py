"""Estimates what a training takes, in closed form."""
