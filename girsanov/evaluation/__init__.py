"""Evaluation: quality, diversity, drift from the pretrained model, win rates and their intervals."""
