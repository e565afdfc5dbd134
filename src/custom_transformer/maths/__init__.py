"""The model's mathematics: operations with their gradients, the architecture, the update, the proof."""
