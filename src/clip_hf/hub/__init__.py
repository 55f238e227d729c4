"""Models to the Hub: which files go, and how they get there."""
