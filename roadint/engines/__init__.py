"""What one call asks for, lowered to rows; engines decide which token takes which row."""
