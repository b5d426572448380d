"""The whole model: the speed of training and prediction, and the effect of each part of a recipe."""
