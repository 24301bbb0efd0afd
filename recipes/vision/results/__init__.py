"""From the records of a folder of runs to tables and figures: read, averaged over runs, set beside the paper."""
