"""`roadint bench`: one file for every benchmark."""
