"""Many runs of one recipe, trained and measured on development data: a line each in a table."""
