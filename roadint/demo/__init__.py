"""The app, `roadint demo`: compositions side by side, subspaces on and off, a look inside."""
