"""The configuration: typed sections, groups of choices, and the way from a command line to them."""
