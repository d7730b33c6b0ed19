"""Memory architectures side by side: one task, one budget of stored bits, one training for all."""
