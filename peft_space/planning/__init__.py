"""What a training will take and which settings suit it, found out by running parts of it."""
