"""Turns a file into token ids: reads it, detects its schema, checks it, and renders it."""
