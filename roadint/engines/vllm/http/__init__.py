"""The OpenAI server: started, its routes, compositions in the names of models."""
