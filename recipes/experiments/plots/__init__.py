"""What figures are made of, and how all look."""
