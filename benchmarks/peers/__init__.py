"""What an engineer would pick instead, each written as its own documentation writes it."""
