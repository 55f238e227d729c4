"""The page of a model on the Hub: the facts that are known of it, put through one template."""
