"""The app, `roadint demo`: answers side by side, subspaces on and off, a look inside."""
