"""Reading and writing files: whole or not at all, and nothing believed that comes from elsewhere."""
