"""The paper's figures, one file each: ``draw`` takes what the steps have left and returns a figure.

``material`` is what they draw from, ``style`` how all look; ``lines``, ``bars`` and ``top_images`` are what they are
made of.
"""
