"""RoadModel, what is saved of it, the hub, and base models by name."""
