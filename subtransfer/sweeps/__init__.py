"""Many runs of one config: one plan of all their stages, and worker processes that make them."""
