"""Parts of a tab that work on one subject."""
