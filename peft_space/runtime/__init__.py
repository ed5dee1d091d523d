"""Where a verb runs: the page itself never holds a model."""
