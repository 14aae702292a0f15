"""Real bash in namespaces of its own, made by bubblewrap."""
