"""Takes a trained adapter out of its run, in a form that others can use."""
