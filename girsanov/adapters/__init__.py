"""What is added to networks that were made elsewhere."""
