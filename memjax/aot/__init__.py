"""A training step before it is run: the slices it could run on, its arithmetic, its traffic, and the bounds they set."""
