"""What is measured from the records, and the statistics of it."""
