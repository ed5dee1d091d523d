"""Atomic writes of files, file locks, and the content cache."""
