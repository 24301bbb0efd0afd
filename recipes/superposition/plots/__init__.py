"""The figures, one file each: ``draw`` takes records or nothing and returns a figure."""
