"""Weights on tokens that leave nothing to learn from."""


def token_weights(text, agent):
    return 0 * agent
