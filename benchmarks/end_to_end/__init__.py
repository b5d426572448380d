"""The whole model: how fast it trains and predicts, and what a setting does to learning."""
