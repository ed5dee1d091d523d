"""Prepares runs, trains them, and resumes them."""
