"""A small safety judge: its data, its model, its training, and its card. ``monolora judge`` is ``program``."""
