"""The web page and the API. Models run in worker processes, never in this one."""
