"""Reading an adapter: what each of its units fires on, and what it does."""
