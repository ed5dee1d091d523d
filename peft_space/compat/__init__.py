"""Every use of a library's internals, one module per library."""
