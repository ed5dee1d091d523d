"""Base models: finding, checking, quantizing and loading them, and adding adapters."""
