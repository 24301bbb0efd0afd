"""The paper's figures, one file each: ``draw`` takes what the steps have left and returns a figure.

``material`` is what they draw from; ``bars`` and ``top_images`` here, and ``lines`` and ``style`` in
``monolora.recipes.experiments.plots``, are what they are made of.
"""
