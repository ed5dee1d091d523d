"""From a file to token ids: read it, recognise its shape, check it, render it."""
