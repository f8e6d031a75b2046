"""Tables of Duo's P(gamma), the probability that argmax(w) is the clean token: ``python -m integral``.

Nobody needs one: without it P is computed where it is used (``diffusion.duality``), as exactly.
"""
