"""Reading scripts without running them: which commands would change permissions."""
