"""Reading an adapter: what each of its units fires on, what it does, and what is lost without it."""
