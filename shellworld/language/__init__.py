"""The language: from text to syntax, and its smaller languages (patterns, arithmetic)."""
