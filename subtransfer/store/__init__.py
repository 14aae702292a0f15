"""What is kept of runs: artefacts, claims, trajectories, histories, buckets."""
