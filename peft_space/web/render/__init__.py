"""Markdown, HTML and tables that the page shows, made from results without gradio."""
