"""The app: compare compositions side by side, turn subspaces on and off, look inside. `roadint demo`, or demos/app.py."""
