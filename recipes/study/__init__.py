"""Studies: many trainings and evaluations by one command, and what they say together.

The way of the data: ``settings`` (a YAML file), ``cells`` (commands, one a folder), ``running`` (what is not done yet),
``chosen`` (learning rates), ``gathered`` (values by seed and prompt), ``crossed`` (intervals), ``claims`` (verdicts),
``report``.
"""
