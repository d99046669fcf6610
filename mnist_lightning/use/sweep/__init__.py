"""The verb `sweep`: searches for better settings with Optuna. It needs the extra `sweep`."""
