"""What a call asks for, lowered to rows; an engine decides which token takes which row."""
