"""The model's mathematics: operations with their gradients, the architectures, the update, the proof."""
