"""Turns results into the Markdown, HTML and tables that the page shows."""
