"""Chats with a model and its base: the messages, and who answers them, in this process or on a server."""
