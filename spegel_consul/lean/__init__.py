"""What keeps a start short and a process small: imports and definitions that cost less than usual."""
