"""Training: `roadint.train` and RoadTrainer.

A run is prepared (`preparation`), learned (`run`, `trainer`) and, in a folder, resumed
(`run_folder`). What the edit can't change is computed once (`prefix`).
"""
