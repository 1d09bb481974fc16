"""`roadint bench`: one file a benchmark."""
