"""Parts of a tab, each about one subject."""
