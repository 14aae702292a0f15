"""Sampling: the engine on the device, the scheduler on the host, agent episodes, policies."""
