"""Studies: many trainings and evaluations by one command, and what they say together.

The way of the data: ``settings`` (a YAML file), ``plan`` (commands, one a folder), ``runner`` (what is not done yet),
``lr_selection``, ``results`` (values by seed and prompt, with intervals), ``claims`` (verdicts), ``report``.
"""
