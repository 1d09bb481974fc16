"""What one call asks for, lowered to rows of numbers, and the engines that decide which token takes which row."""
