"""What acts in a request, as rows of a table: which edits at which tokens, at which places."""
