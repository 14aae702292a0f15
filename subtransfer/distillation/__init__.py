"""Students: what they learn from, their teachers' targets, on-policy rounds."""
