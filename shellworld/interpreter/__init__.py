"""The simulated shell: expansion, redirection, compound commands, sessions."""
