"""The paper's figures, one file each: ``draw`` takes what the steps have left and returns a figure.

``material`` is what they draw from; ``top_images`` here, and ``lines``, ``bars`` and ``style`` in
``monolora.recipes.experiments.plots``, are what they are made of.
"""
