"""Mathematics of masked diffusion: schedules, processes, parameterization, objectives, sampling of symbols.

Imports torch and nothing else. Time runs from t = 0 (data) to t = 1 (noise); losses are in nats.
"""

NEG_INF: float = -1e6
"""Log-probability of what cannot be; finite, so that 0 * NEG_INF is 0 and differences are no NaN."""
