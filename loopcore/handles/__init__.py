"""What a step body reaches through its learner: parameters, models, hyperparameters, random numbers, trees."""
