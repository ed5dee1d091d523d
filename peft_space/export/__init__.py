"""Exports a trained adapter from its run, in a form that others can use."""
