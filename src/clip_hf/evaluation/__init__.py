"""What a trained model is worth, and its features for whoever builds on them."""
