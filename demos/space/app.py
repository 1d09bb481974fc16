"""The app as a Space of the hub."""

import os

from roadint.demo.app import launch
from roadint.demo.service import Service

if __name__ == "__main__":
    launch(Service(os.environ.get("ROADINT_CHECKPOINT")), server_name="0.0.0.0", server_port=7860)
