"""Reads one kind of data file each."""
