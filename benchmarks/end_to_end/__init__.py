"""The whole model: the speed of training and prediction."""
