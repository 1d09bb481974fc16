"""Many runs of one recipe: trained, measured on development data, one row a run in a table on disk."""
