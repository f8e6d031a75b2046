"""The network: a diffusion transformer with rotary positions and (infinite) mask embeddings, and its EMA."""
