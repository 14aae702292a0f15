"""From a config to a plan of stages, and from a plan to results."""
