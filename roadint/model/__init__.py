"""RoadModel, its checkpoints, the hub, and base models by name."""
