"""The filters between rollouts and distillation."""
