"""Tokens, ranks, memory, sampling: the part that knows nothing of skills, phases or the content of environments."""
