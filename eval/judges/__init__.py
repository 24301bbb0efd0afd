"""Who says whether a response is harmful."""
