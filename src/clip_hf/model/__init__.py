"""What travels to the Hub with a checkpoint: models, configurations, processors, conversion; a flat folder."""
