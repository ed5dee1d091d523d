"""Files that are written whole or not at all, file locks, and the content cache."""
