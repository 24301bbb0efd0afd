"""What the vision and the superposition experiments share: devices, random numbers, records, intervals, plots."""
