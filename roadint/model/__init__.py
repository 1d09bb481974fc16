"""RoadModel, and what is kept of it: checkpoints, the hub, base models by name."""
