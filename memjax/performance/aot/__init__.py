"""Analysis of a training step before it runs: topologies, FLOPs, traffic and bounds."""
