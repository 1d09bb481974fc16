"""The app, without the command line: `python demos/app.py`; the same as `roadint demo`."""

from roadint.demo.app import launch
from roadint.demo.service import Service

if __name__ == "__main__":
    launch(Service())
