"""The page of a comparison of adapters."""
