"""Calls whose edits are part of a compiled graph: `RoadModel.compile`."""
