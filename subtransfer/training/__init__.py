"""How models are trained: objectives, the optimiser, the one loop, checkpoints, populations."""
