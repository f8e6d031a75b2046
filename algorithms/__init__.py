"""One file an algorithm (or a family of close ones); algo.py lists them."""
