"""A run: its flags, its folder, resuming it, and probing what it learned."""
