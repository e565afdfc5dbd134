"""What is done with a model: training, evaluation, generation, observation, serving."""
