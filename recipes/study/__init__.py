"""Many trainings and evaluations by one command (a YAML file, :mod:`.settings`), and their joint report."""
