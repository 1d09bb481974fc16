"""To and from the hosts' own forms."""
